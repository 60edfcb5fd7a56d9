"""How many to keep: by count, share or quantile of a number, exactly, in bounded memory over any number of shards.

The cut is found by a radix selection over 64-bit orders (a score's 32 bits, then 32 bits of the row's draw among equal
scores), 16 bits a pass. Memory is 512 KiB a source with a quota of its own, and never depends on the number of rows.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from pipelines.errors import ConfigurationError
from pipelines.settings import Settings

Orders = NDArray[np.uint64]
DIGITS, BITS = 4, 16  # 64 bits, 16 a pass
FEW = 1 << 20  # values that are gathered and sorted once no more are left in question: 8 MiB
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)")
Amount = int | str
"""A count (10000000, "10M"), a share ("20%"), or a share as a count of a count ("10M of 50M")."""


class Take(Settings):
    """Keep the best pictures by one column, as many as are asked for."""

    group: str
    column: str
    sources: tuple[str, ...] = ()
    """Sources that are meant; the pictures of others stay, are not counted and need no score. Empty: all."""
    keep: Amount | None = None
    """How many of all pictures that pass every other rule, or which share of them. Quotas are a part of it: what they
    take is gone from what the other sources share."""
    quantile: float | None = Field(default=None, ge=0, lt=1)
    """Instead of `keep`: the value below which this share of the pictures without a quota lies is the cut, so 0.8 keeps
    20% of them."""
    quotas: Mapping[str, Amount] = {}
    """By source name: an amount of its own, taken from that source's pictures alone."""

    @field_validator("keep")
    @classmethod
    def _readable(cls, keep: Amount | None) -> Amount | None:
        if keep is not None:
            amount(keep, 1)
        return keep

    @field_validator("quotas")
    @classmethod
    def _all_readable(cls, quotas: Mapping[str, Amount]) -> Mapping[str, Amount]:
        for keep in quotas.values():
            amount(keep, 1)
        return quotas

    @model_validator(mode="after")
    def _one_way(self) -> "Take":
        if self.keep is not None and self.quantile is not None:
            raise ValueError("give keep or quantile, not both")
        if self.keep is None and self.quantile is None and not self.quotas:
            raise ValueError("say how many to keep: keep, quantile or quotas")
        if self.sources and (others := sorted(set(self.quotas) - set(self.sources))):
            raise ValueError(f"quotas of {', '.join(others)}, which `sources` leaves out")
        return self

    def asked(self, present: Mapping[str, int]) -> dict[str, int]:
        """How many pictures are asked for of each quota's source, and of all other sources together (""), given how
        many there are. It may be more than there are.

        Raises ConfigurationError where the quotas take more than `keep`.
        """
        others = present.get("", 0)
        found = {name: amount(keep, present[name]) for name, keep in self.quotas.items()}
        if self.keep is None:
            return found | {"": others - round((self.quantile or 0) * others)}
        total = amount(self.keep, sum(present.values()))
        if (reserved := sum(found.values())) > total:
            raise ConfigurationError(f"The quotas take {reserved:,} pictures, and {total:,} are to be kept in all.")
        return found | {"": total - sum(min(present[name], number) for name, number in found.items())}

    def wanted(self, present: Mapping[str, int]) -> dict[str, int]:
        """What is asked for, as far as it is there."""
        return {name: min(present.get(name, 0), number) for name, number in self.asked(present).items()}


def amount(keep: Amount, present: int) -> int:
    """The number that `keep` asks for of `present` rows.

    Raises ValueError for what is neither a count nor a share up to 100%.
    """
    text = str(keep).strip()
    if text.endswith("%"):
        share = float(text[:-1]) / 100
    elif " of " in text:
        part, _, whole = text.partition(" of ")
        share = _count(part) / max(1, _count(whole))
    else:
        return _count(text)
    if not 0 <= share <= 1:
        raise ValueError(f"{keep!r} is no share between 0 and 100%")
    return round(share * present)


def _count(text: str) -> int:
    match = COUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f'{text!r} is no amount; write 10000000, "10M", "20%" or "10M of 50M"')
    return round(float(match[1]) * UNITS[match[2]])


def orders(scores: NDArray[np.float32], ties: Orders) -> Orders:
    """One number for each row that is larger for a higher score, and among equal scores for a smaller tie."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding makes -0 equal 0
    flipped = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    return flipped.astype(np.uint64) << np.uint64(32) | ~ties >> np.uint64(32)


def score_of(order: int) -> float:
    """The score in an order."""
    bits = np.uint32(order >> 32)
    plain = bits & np.uint32(0x7FFFFFFF) if bits >> 31 else ~bits
    return float(np.array([plain], np.uint32).view(np.float32)[0])


def cuts(passes: Callable[[], Iterable[tuple[NDArray[np.int64], Orders]]], wanted: Sequence[int]) -> list[int | None]:
    """For each class the order of its `wanted`-th largest row; at or above it lie exactly so many (where no two are
    equal). None for a class of which none is wanted.

    `passes` starts a new reading of all rows: class number and order, in pieces of any size. At most four are made.
    """
    classes = len(wanted)
    left = [int(number) for number in wanted]
    prefix = np.zeros(classes, np.uint64)
    for digit in range(DIGITS):
        shift = np.uint64(64 - BITS * (digit + 1))
        counts = np.zeros((classes, 1 << BITS), np.int64)
        for which, values in passes():
            if digit:
                alike = values >> (shift + np.uint64(BITS)) == prefix[which]
                which, values = which[alike], values[alike]
            digits = (values >> shift & np.uint64(0xFFFF)).astype(np.int64)
            counts += np.bincount(which << BITS | digits, minlength=classes << BITS).reshape(counts.shape)
        in_question = 0
        for one in range(classes):
            if not wanted[one]:
                continue
            above = np.cumsum(counts[one][::-1])
            if above[-1] < left[one]:
                raise ConfigurationError(f"{wanted[one]} rows are to be kept of fewer.")
            step = int(np.searchsorted(above, left[one]))
            left[one] -= int(above[step - 1]) if step else 0
            bucket = (1 << BITS) - 1 - step
            in_question += int(counts[one][bucket])
            prefix[one] = prefix[one] << np.uint64(BITS) | np.uint64(bucket)
        if in_question <= FEW:
            return _finished(passes, wanted, left, prefix, shift)
    return [int(prefix[one]) if wanted[one] else None for one in range(classes)]


def _finished(
    passes: Callable[[], Iterable[tuple[NDArray[np.int64], Orders]]],
    wanted: Sequence[int],
    left: Sequence[int],
    prefix: Orders,
    shift: np.uint64,
) -> list[int | None]:
    """The cuts, by sorting the few values that are still in question."""
    gathered: list[list[Orders]] = [[] for _ in wanted]
    for which, values in passes():
        alike = values >> shift == prefix[which]
        for one in np.unique(which[alike]):
            gathered[one].append(values[alike & (which == one)])
    return [
        int(np.sort(np.concatenate(gathered[one]))[-left[one]]) if wanted[one] else None for one in range(len(wanted))
    ]
