"""Near duplicates by pHash: each row, from the best on, gathers the rows that look like it and have joined none.

So a row joins the best centre within the distance, and no list of all pairs is ever kept: a few rows ask at a time, as
many as have LOOKED_AT candidates together, and who has joined asks no more. A picture that stands ten thousand times
in the data costs one question. Rows that look like no other, most of them, are found first (filtering.covering) and
neither ask nor are looked at.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from filtering.covering import near_another
from filtering.phash import GROUP, BandedIndex, Hashes, numbers
from filtering.rows import shards_of
from filtering.stars import PHASH, Rows, Stars
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE

WINDOW = 1 << 16  # rows of which the next ones that ask are chosen
LOOKED_AT = 1 << 22  # candidates of the rows that ask together


def join_alike(datasets: Sequence[Dataset], places: Rows, stars: Stars, distance: int, tolerance: float) -> None:
    """Join rows whose hashes lie within `distance` bits and whose shapes differ by at most `tolerance`, longer by
    shorter. `places`: of each row of `datasets` in the order of preference."""
    hashes, shapes, place = _gathered(datasets, places)
    widest = np.float32(np.log(tolerance))
    near = np.flatnonzero(near_another(hashes, shapes, distance, widest))
    hashes, shapes, place = hashes[near], shapes[near], place[near]
    index = BandedIndex(hashes)
    free = np.ones(len(hashes), bool)
    for asking in _blocks(index, hashes, free, distance):
        who, whom = _near(index, hashes, asking, free, distance)
        fits = np.abs(shapes[asking[who]] - shapes[whom]) <= widest
        who, whom = who[fits], whom[fits]
        bounds = [*np.flatnonzero(np.diff(who, prepend=-1)).tolist(), len(who)]
        for start, end in pairwise(bounds):
            centre, alike = int(asking[who[start]]), whom[start:end]
            if free[centre] and len(alike := alike[free[alike]]):
                free[alike] = False
                bits = np.bitwise_count(hashes[alike] ^ hashes[centre]).astype(np.float32)
                stars.join(place[alike], int(place[centre]), PHASH, bits)


def _gathered(datasets: Sequence[Dataset], places: Rows) -> tuple[Hashes, NDArray[np.float32], Rows]:
    """Hash, logarithm of width by height, and place of every row that has a hash, the best first."""
    hashes, shapes, place, first = [], [], [], 0
    for _, shard in shards_of(datasets):
        # a dataset of text has no hashes
        texts = shard.values(GROUP, "phash") if shard.has(GROUP) else [None] * len(shard)
        there = np.flatnonzero([text is not None for text in texts])
        hashes.append(numbers([texts[row] for row in there]))
        with np.errstate(divide="ignore", invalid="ignore"):
            shape = np.log(shard.numbers(SOURCE, "width") / shard.numbers(SOURCE, "height"))
        shapes.append(shape[there].astype(np.float32))
        place.append(places[first + there])
        first += len(shard)
    found = np.concatenate(place) if place else np.zeros(0, np.int64)
    order = np.argsort(found)
    if not len(order):
        return np.zeros(0, np.uint64), np.zeros(0, np.float32), found
    return np.concatenate(hashes)[order], np.concatenate(shapes)[order], found[order]


def _blocks(index: BandedIndex, hashes: Hashes, free: NDArray[np.bool_], distance: int) -> Iterator[Rows]:
    """The rows that ask next, best first: those that are free when their turn comes."""
    start = 0
    while start < len(hashes):
        window = start + np.flatnonzero(free[start : start + WINDOW])
        ends = np.cumsum(index.costs(hashes[window], distance))
        block = window[: max(1, int(np.searchsorted(ends, LOOKED_AT, side="right")))]
        if len(block):
            yield block
        start = int(block[-1]) + 1 if len(block) < len(window) else start + WINDOW


def _near(
    index: BandedIndex, hashes: Hashes, asking: Rows, free: NDArray[np.bool_], distance: int
) -> tuple[Rows, Rows]:
    """Number of one that asks and worse row that is free, each pair once, in order."""
    found = [np.zeros(0, np.int64)]
    for who, whom in index.pairs(hashes[asking], distance):
        worse = free[whom] & (whom > asking[who])
        found.append(who[worse] * len(hashes) + whom[worse])
    pairs = np.unique(np.concatenate(found))
    return pairs // len(hashes), pairs % len(hashes)
