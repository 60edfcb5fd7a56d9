"""pHash: 64 bits that stay nearly the same when a picture is resized, compressed again or cropped a little.

The picture in grey, shrunk to 32 x 32; of its discrete cosine transform the 8 x 8 lowest frequencies; each bit says
whether one lies above their median (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
2010; the layout of `imagehash.phash`). Written as 16 hexadecimal digits, the lowest frequency first.

Hashes within a distance are found by bands: of two that differ in at most d of 64 bits, one of four bands of 16 bits
differs in at most d // 4. So a table of each band, probed with every 16-bit pattern of up to d // 4 bits, misses none.
"""

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from filtering.decode import Undecodable, decoded
from filtering.measured import write_measured
from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

GROUP = "hash"
STEP_VERSION = 2
SIDE, LOW = 32, 8
BANDS, BAND_BITS = 4, 16
PATTERNS = 1 << BAND_BITS
AT_ONCE = 1 << 20  # pairs that are compared together: about 40 MiB
FARTHEST = 15  # bits that two hashes may differ in: above it the probes (patterns of 4 of 16 bits) cost too much
DRAFT = 4 * SIDE  # a JPEG is decoded no smaller than this, which costs an eighth and moves few bits

SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "phash", "md5", "status", "reason")])
Hashes = NDArray[np.uint64]


def phash(data: bytes) -> int:
    """The hash of an encoded picture. Raises Undecodable for what is none."""
    grey = decoded(data, "L", DRAFT).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, np.float64))[:LOW, :LOW]
    bits = (low > np.median(low)).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def digits(number: int) -> str:
    """As the column holds it."""
    return f"{number:016x}"


def numbers(texts: list[str | None]) -> Hashes:
    """Hashes [N] of the column's texts; 0 for null, which the caller has to leave out."""
    return np.array([int(text, 16) if text else 0 for text in texts], np.uint64)


def hash_step(dataset: Dataset) -> Step:
    """The step that writes the column group `hash` of `dataset`."""
    groups = (SOURCE, IMAGES) if dataset.entries(IMAGES) else (SOURCE,)
    return Step(GROUP, STEP_VERSION, {"phash": [SIDE, LOW, DRAFT]}, (Reads(dataset, groups),))


def write_hashes(dataset: Dataset, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `hash` (phash, md5 of the stored bytes) of every image of `dataset` and commit it."""
    return write_measured(StepRun(dataset, hash_step(dataset), on_progress), GROUP, SCHEMA, _row)


def _row(key: str, data: bytes | None) -> dict[str, str | None]:
    if data is None:
        return {"key": key, "status": "failed", "reason": "no_image"}
    try:
        found = digits(phash(data))
    except Undecodable:
        return {"key": key, "status": "failed", "reason": "undecodable"}
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return {"key": key, "phash": found, "md5": md5, "status": "ok"}


class BandedIndex:
    """Finds hashes within a distance of a query. 24 bytes a hash, and 2 MiB."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self._order, self._starts = [], []
        self._found: dict[int, list[NDArray[np.int64]]] = {}
        for band in range(BANDS):
            values = _band(hashes, band)
            self._order.append(np.argsort(values, kind="stable").astype(np.uint32))
            many = np.bincount(values, minlength=PATTERNS)
            self._starts.append(np.concatenate(([0], np.cumsum(many))))

    def pairs(self, queries: Hashes, distance: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pieces of (number of a query, number of a hash) for every pair within `distance` bits. A pair may come more
        than once, and a query that is in the index meets itself. At most about AT_ONCE pairs are looked at together,
        or as many as one query has."""
        _check(distance)
        for band in range(BANDS):
            wanted, starts = _band(queries, band), self._starts[band]
            for mask in probes(distance // BANDS):
                probe = (wanted ^ np.uint16(mask)).astype(np.int64)
                begin = starts[probe]
                many = starts[probe + 1] - begin
                for first, last in _runs(many):
                    who = np.repeat(np.arange(first, last), many[first:last])
                    before = np.cumsum(many[first:last]) - many[first:last]
                    at = np.arange(len(who)) + np.repeat(begin[first:last] - before, many[first:last])
                    whom = self._order[band][at].astype(np.int64)
                    near = np.bitwise_count(queries[who] ^ self.hashes[whom]) <= distance
                    yield who[near], whom[near]

    def costs(self, queries: Hashes, distance: int) -> NDArray[np.int64]:
        """How many hashes `pairs` looks at for each query [Q]."""
        _check(distance)
        found = np.zeros(len(queries), np.int64)
        for band, weights in enumerate(self._weights(distance // BANDS)):
            found += weights[_band(queries, band)]
        return found

    def _weights(self, bits: int) -> list[NDArray[np.int64]]:
        """For each band and pattern, how many hashes its probes find."""
        if bits not in self._found:
            patterns, found = np.arange(PATTERNS), []
            for starts in self._starts:
                many, weights = np.diff(starts), np.zeros(PATTERNS, np.int64)
                for mask in probes(bits):
                    weights += many[patterns ^ mask]
                found.append(weights)
            self._found[bits] = found
        return self._found[bits]


def _check(distance: int) -> None:
    if not 0 <= distance <= FARTHEST:
        raise ValueError(f"a distance of {distance} bits; 0 to {FARTHEST} can be looked up")


def _runs(many: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Neighbouring queries that together have at most AT_ONCE candidates, or one query that has more."""
    ends, first = np.cumsum(many), 0
    while first < len(many):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + AT_ONCE, side="right")))
        if ends[last - 1] > done:
            yield first, last
        first = last


@cache
def probes(bits: int) -> tuple[int, ...]:
    """Every 16-bit pattern of at most `bits` ones."""
    return tuple(
        sum(1 << place for place in places) for many in range(bits + 1) for places in combinations(range(16), many)
    )


def _band(hashes: Hashes, band: int) -> NDArray[np.uint16]:
    return (hashes >> np.uint64(BAND_BITS * band) & np.uint64(0xFFFF)).astype(np.uint16)
