"""Rows that share an identity (bytes, a duplicate group, a key), and which of them stays. Bounded memory.

Identities are looked at a range of their hashes at a time, at most AT_ONCE rows each: 8 bytes a row, and a little more
for each row that does share its identity.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.rows import Mask, ShardRows

AT_ONCE = 1 << 23  # rows whose hashes are held together: 64 MiB, and as much again to sort them
_DIGITS = np.full(256, 255, np.uint8)
for _value, _letter in enumerate(b"0123456789abcdef"):
    _DIGITS[_letter] = _value

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Piece:
    """One shard's part in the comparison."""

    rows: ShardRows
    first: int
    """Number of its first row among all rows."""
    eligible: Mask
    """Rows that take part."""


Worth = Callable[[ShardRows], Sequence[NDArray[np.float64]]]
"""Numbers by which the best of a group is known: the first decides, the next where it is equal; larger is better."""


@dataclass
class Losers:
    """Rows that give way, with the key of the row that stays: 24 bytes each."""

    rows: NDArray[np.int64]
    winners: NDArray[np.void]

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, str]]) -> "Losers":
        ordered = sorted(pairs)
        rows = np.array([row for row, _ in ordered], np.int64)
        return cls(rows, np.array([bytes.fromhex(key) for _, key in ordered], "V16"))

    def winner(self, row: int) -> str:
        """Key of the row that stays for a row that does not."""
        return bytes(self.winners[int(np.searchsorted(self.rows, row))]).hex()


def losers(
    pieces: Callable[[], Iterator[Piece]], column: tuple[str, str], total: int, worth: Worth | None = None
) -> Losers:
    """Every eligible row that shares the value of `column` (hexadecimal text, null takes no part) with a better one.

    Without `worth`, and where it is equal, the first in the order dataset, shard, row is the best. `pieces` starts a
    new reading; `total` is about how many rows take part.
    """
    parts = 1
    while total / parts > AT_ONCE:
        parts *= 2
    found: list[tuple[int, str]] = []
    for part in range(parts):
        repeated = _repeated(
            [own[_within(own, part, parts)] for piece in pieces() for own in [_hashes(piece, column)[0]]]
        )
        if len(repeated):
            found += _beaten(pieces, column, repeated, worth)
    return Losers.of(found)


def _repeated(hashes: Sequence[Hashes]) -> Hashes:
    """Values that occur more than once, ascending."""
    values = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])


def _beaten(
    pieces: Callable[[], Iterator[Piece]], column: tuple[str, str], repeated: Hashes, worth: Worth | None
) -> list[tuple[int, str]]:
    groups: dict[str, list[tuple[tuple[float, ...], int, str]]] = {}
    for piece in pieces():
        hashes, rows = _hashes(piece, column)
        chosen = rows[np.isin(hashes, repeated)]
        if not len(chosen):
            continue
        identities = piece.rows.column(*column).take(pa.array(chosen)).to_pylist()
        keys = piece.rows.column("source", "key").take(pa.array(chosen)).to_pylist()
        numbers = [np.nan_to_num(one, nan=-np.inf)[chosen] for one in worth(piece.rows)] if worth else []
        for place, (row, identity, key) in enumerate(zip(chosen.tolist(), identities, keys, strict=True)):
            number = piece.first + row
            groups.setdefault(identity, []).append((tuple(float(one[place]) for one in numbers), -number, key))
    found = []
    for members in groups.values():
        best = max(members)
        found += [(-number, best[2]) for _, number, _ in members if number != best[1]]
    return found


def _hashes(piece: Piece, column: tuple[str, str]) -> tuple[Hashes, NDArray[np.int64]]:
    """The first 64 bits of the identity of each row that takes part, and its number in the shard."""
    values = piece.rows.column(*column)
    present = piece.eligible & ~np.asarray(values.is_null(), dtype=bool)
    rows = np.flatnonzero(present)
    texts = values.take(pa.array(rows)).combine_chunks()
    return _first_digits(texts), rows


def _first_digits(texts: pa.Array) -> Hashes:
    """The first 16 hexadecimal digits of each text as a number. Every text has as many digits as the others."""
    if not len(texts):
        return np.zeros(0, np.uint64)
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.chunks)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(texts.buffers()[2], np.uint8)
    digits = _DIGITS[letters[offsets[:-1, None] + np.arange(16)]].astype(np.uint64)
    shifts = np.arange(60, -4, -4).astype(np.uint64)
    found: Hashes = (digits << shifts).sum(axis=1, dtype=np.uint64)
    return found


def _within(hashes: Hashes, part: int, parts: int) -> Mask:
    if parts == 1:
        return np.ones(len(hashes), bool)
    found: Mask = hashes >> np.uint64(64 - (parts.bit_length() - 1)) == np.uint64(part)
    return found
