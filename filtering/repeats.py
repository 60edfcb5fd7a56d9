"""Rows that share an identity (bytes, a duplicate group, a key), and which of them stays. Bounded memory.

Identities are looked at a range of their hashes at a time: 8 bytes for each of at most AT_ONCE rows, then about 60
bytes for each of at most TOGETHER rows that do share theirs (or for all that share one). What is known in the end takes
8 bytes for each row that gives way and 20 for each that it gives way to, and as much again while it is sorted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.rows import Mask, ShardRows
from pipelines.errors import HarmonError

AT_ONCE = 1 << 22  # rows whose hashes are held together: 32 MiB, and as much again to gather them
TOGETHER = 1 << 20  # rows with an equal that are compared together
_DIGITS = np.full(256, 255, np.uint8)
for _value, _letter in enumerate(b"0123456789abcdef"):
    _DIGITS[_letter] = _value

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.uint32]
"""Of rows, among all that take part."""


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
    """Rows that give way, ascending, and for each which of the keys is that of the row that stays."""

    rows: Numbers
    which: Numbers
    keys: NDArray[np.void]

    def winner(self, row: int) -> str:
        """Key of the row that stays for a row that does not."""
        return bytes(self.keys[self.which[self.among(row, row + 1)][0]]).hex()

    def among(self, begin: int, end: int) -> slice:
        """Where those stand that give way among the rows `begin` to `end`."""
        return slice(*np.searchsorted(self.rows, np.array([begin, end], np.uint32)).tolist())


def losers(
    pieces: Callable[[], Iterator[Piece]], column: tuple[str, str], total: int, worth: Worth | None = None
) -> Losers:
    """Every eligible row that shares the value of `column` (hexadecimal text, null takes no part) with a better one.

    Of a text its first 128 bits count. Without `worth`, and where it is equal, the first in the order dataset, shard,
    row is the best. `pieces` starts a new reading; `total` is about how many rows take part.
    """
    if total >= 1 << 32:
        raise HarmonError(f"{total:,} rows are more than are compared together; select from fewer datasets at a time")
    parts = 1
    while total / parts > AT_ONCE:
        parts *= 2
    rows, winners = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    for part in range(parts):
        for repeated in _repeated(_gathered(pieces, column, part, parts)):
            beaten, best = _beaten(pieces, column, repeated, worth)
            rows.append(beaten)
            winners.append(best)
    gone = np.concatenate(rows)
    order = np.argsort(gone)
    gone = gone[order]
    rows.clear()
    stay = np.concatenate(winners)[order]
    winners.clear()
    named = np.unique(stay)
    which = np.searchsorted(named, stay).astype(np.uint32)
    del stay, order
    return Losers(gone, which, _keys(pieces, named))


def _gathered(pieces: Callable[[], Iterator[Piece]], column: tuple[str, str], part: int, parts: int) -> Hashes:
    found = [np.zeros(0, np.uint64)]
    for piece in pieces():
        hashes, _ = _hashes(piece, column)
        found.append(hashes[_within(hashes, part, parts)])
    return np.concatenate(found)


def _repeated(values: Hashes) -> Iterator[Hashes]:
    """Values that occur more than once, ascending: so many at a time as at most TOGETHER rows have, or one that more
    rows have. Sorts `values`."""
    values.sort()
    again = values[1:] == values[:-1]
    firsts = np.flatnonzero(again & ~np.concatenate(([False], again[:-1]))) if len(again) else np.zeros(0, np.int64)
    ends = np.cumsum(np.searchsorted(values, values[firsts], side="right") - firsts)
    repeated, begin = values[firsts], 0
    del values, again
    while begin < len(repeated):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + TOGETHER, side="right")))
        yield repeated[begin:end]
        begin = end


def _beaten(
    pieces: Callable[[], Iterator[Piece]], column: tuple[str, str], repeated: Hashes, worth: Worth | None
) -> tuple[Numbers, Numbers]:
    """Numbers of the rows that give way among those with these hashes, and of the rows that stay for them."""
    gathered: list[list[NDArray[np.generic]]] = []
    for piece in pieces():
        hashes, rows = _hashes(piece, column)
        at = np.minimum(np.searchsorted(repeated, hashes), len(repeated) - 1)
        chosen = repeated[at] == hashes
        if chosen.any():
            rows = rows[chosen]
            rest = _digits(_texts(piece.rows, column, rows), 16)  # the rest of a key or group, half of that of sha256
            numbers = [np.nan_to_num(one, nan=-np.inf)[rows] for one in worth(piece.rows)] if worth else []
            gathered.append(
                [(piece.first + rows).astype(np.uint32), at[chosen].astype(np.int32), rest, *(-one for one in numbers)]
            )
    if not gathered:
        return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
    number, first, rest, *worths = (np.concatenate(parts) for parts in zip(*gathered, strict=True))
    gathered.clear()
    order = np.lexsort((number, *reversed(worths), rest, first))
    worths.clear()
    first, rest, number = first[order], rest[order], number[order]
    begins = np.concatenate(([True], (first[1:] != first[:-1]) | (rest[1:] != rest[:-1])))
    best = number[begins][np.cumsum(begins) - 1]
    return number[~begins], best[~begins]


def _keys(pieces: Callable[[], Iterator[Piece]], numbers: Numbers) -> NDArray[np.void]:
    """Keys of rows by number, which ascends."""
    found = np.zeros(len(numbers), "V16")
    for piece in pieces() if len(numbers) else ():
        begin, end = np.searchsorted(numbers, np.array([piece.first, piece.first + len(piece.rows)], np.uint32))
        if end > begin:
            texts = (
                piece.rows.column("source", "key")
                .take(pa.array(numbers[begin:end] - np.uint32(piece.first)))
                .to_pylist()
            )
            found[begin:end] = [bytes.fromhex(text) for text in texts]
    return found


def _hashes(piece: Piece, column: tuple[str, str]) -> tuple[Hashes, NDArray[np.int64]]:
    """The first 64 bits of the identity of each row that takes part, and its number in the shard."""
    values = piece.rows.column(*column)
    present = piece.eligible & ~np.asarray(values.is_null(), dtype=bool)
    rows = np.flatnonzero(present)
    return _digits(_texts(piece.rows, column, rows), 0), rows


def _texts(rows: ShardRows, column: tuple[str, str], wanted: NDArray[np.int64]) -> pa.Array:
    texts = rows.column(*column).take(pa.array(wanted)).combine_chunks()
    return pa.concat_arrays(texts.chunks) if isinstance(texts, pa.ChunkedArray) and texts.num_chunks else texts


def _digits(texts: pa.Array, start: int) -> Hashes:
    """Sixteen hexadecimal digits of each text, from the digit `start` on, as a number. Every text has 32 at least."""
    if not len(texts):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(texts.buffers()[2], np.uint8)
    digits = _DIGITS[letters[offsets[:-1, None] + np.arange(start, start + 16)]]
    found: Hashes = (digits[:, ::2] << 4 | digits[:, 1::2]).copy().view(">u8").reshape(-1).astype(np.uint64)
    return found


def _within(hashes: Hashes, part: int, parts: int) -> Mask:
    if parts == 1:
        return np.ones(len(hashes), bool)
    found: Mask = hashes >> np.uint64(64 - (parts.bit_length() - 1)) == np.uint64(part)
    return found
