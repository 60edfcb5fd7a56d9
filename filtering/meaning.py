"""Near duplicates by embedding: rows are compared within clusters (the outline of SemDeDup, Abbas et al. 2023), each in
the `probes` nearest of them, and join the best row that nobody took.

The clusters are laid out on disk, best row first, and read several times. In each round every row that is still open
notes the best row beside it that has not joined another one; where that one is a centre it joins it, and where there is
none it is a centre. So a row joins the best centre within the distance, over all of its clusters, and no pair is kept.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.rows import ShardRows, shards_of
from filtering.shuffle import PLACE, ROW, Reader, Writer
from filtering.stars import SEMANTIC, Rows, Stars
from filtering.vectors import Halves, Vectors, stored, unit
from pipelines.dataset import Dataset

CLUSTER_ROWS = 500  # rows that a cluster should have: comparing costs so many products a row and probe
MOST_CLUSTERS = 1 << 14
SAMPLE = 32  # rows of each cluster that k-means learns from, where that is not more than
MOST_SAMPLED = 1 << 17  # rows: 384 MiB of 768 numbers
ITERATIONS = 4
BLOCK = 4096  # rows of a cluster in memory at a time, and as many that they are compared with
CHUNK = 512  # of which so many are compared at once


def join_same_meaning(
    datasets: Sequence[Dataset],
    places: Rows,
    stars: Stars,
    group: str,
    cosine: float,
    probes: int,
    seed: int,
    folder: Path,
) -> None:
    """Join free rows whose embeddings in `group` have at least `cosine`. `places`: of each row of `datasets` in the
    order of preference; `folder`: empty, for the clusters."""
    total = _join_equal(datasets, places, stars, group)
    means = _clusters(datasets, places, stars, group, total, seed)
    if means is None:
        return
    probes = min(probes, means.k)
    writer, step = Writer(folder, total * probes), ((1 << 64) - 1) // means.k
    ends = np.zeros(means.k + 1, np.int64)
    for vectors, place in _free(datasets, places, stars, group):
        nearest = means.index.search(vectors, probes)[1].reshape(-1)
        ends[1:] += np.bincount(nearest, minlength=means.k)
        own = np.repeat(place, probes)
        # a cluster's rows lie apart from each other, the best first, so that a large one is split like any other
        within = own.astype(np.uint64) * np.uint64(step // len(places))
        table = {PLACE: nearest.astype(np.uint64) * np.uint64(step) + within, ROW: own}
        halves = np.repeat(vectors.astype(np.float16), probes, axis=0)
        writer.add(
            pa.table(table | {"embedding": pa.FixedSizeListArray.from_arrays(halves.reshape(-1), halves.shape[1])})
        )
    writer.close()
    _join_within(Reader(folder), np.cumsum(ends).tolist(), stars, cosine)


# Rows with an embedding


def _stored(shard: ShardRows, group: str) -> tuple[Halves, Rows]:
    if not shard.has(group):  # a dataset of text
        return np.zeros((0, 0), np.float16), np.zeros(0, np.int64)
    return stored(shard.column(group, "embedding"))


def _free(datasets: Sequence[Dataset], places: Rows, stars: Stars, group: str) -> Iterator[tuple[Vectors, Rows]]:
    """Normalised embeddings and places of the rows that have joined none, shard by shard."""
    first = 0
    for _, shard in shards_of(datasets):
        halves, there = _stored(shard, group)
        place = places[first + there]
        free = stars.free(place)
        if free.any():
            yield unit(halves[free]), place[free]
        first += len(shard)


def _join_equal(datasets: Sequence[Dataset], places: Rows, stars: Stars, group: str) -> int:
    """Rows with the very same embedding join the best of them: a picture that stands in the data many times would fill
    a cluster. They are known by 64 bits of a hash. Returns how many rows with an embedding are free then."""
    digests, place, first = [], [], 0
    for _, shard in shards_of(datasets):
        halves, there = _stored(shard, group)
        free = stars.free(places[first + there])
        raw = b"".join(hashlib.blake2b(one.tobytes(), digest_size=8).digest() for one in halves[free])
        digests.append(np.frombuffer(raw, np.uint64))
        place.append(places[first + there[free]])
        first += len(shard)
    if not digests:
        return 0
    values, own = np.concatenate(digests), np.concatenate(place)
    order = np.lexsort((own, values))
    values, own = values[order], own[order]
    begins = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))) if len(values) else np.zeros(0, int)
    best = np.repeat(own[begins], np.diff([*begins.tolist(), len(own)]))
    later = best != own
    stars.join(own[later], best[later], SEMANTIC, 0.0)
    return len(begins)


# Clusters


def _clusters(
    datasets: Sequence[Dataset], places: Rows, stars: Stars, group: str, total: int, seed: int
) -> "Any | None":
    """faiss' k-means, trained on an even draw of the rows; None where there is no row."""
    import faiss

    clusters = min(MOST_CLUSTERS, max(1, total // CLUSTER_ROWS))
    share = min(clusters * SAMPLE, MOST_SAMPLED) / max(1, total)
    draw, parts = np.random.default_rng(seed), []
    for vectors, _ in _free(datasets, places, stars, group):
        parts.append(vectors[draw.random(len(vectors)) < share])
    sample = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    if not len(sample):
        return None
    means = faiss.Kmeans(
        sample.shape[1], min(clusters, len(sample)), niter=ITERATIONS, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=SAMPLE,
    )  # fmt: skip
    means.train(sample)
    return means


def _join_within(reader: Reader, ends: Sequence[int], stars: Stars, least: float) -> None:
    """Join the rows of the clusters, of which the nth ends at the nth of `ends`, to the best centre beside them."""
    spans = [(begin, end) for begin, end in pairwise(ends) if end - begin > 1]
    undecided = np.ones(len(stars), bool)  # a row of no cluster, or alone in one, becomes a centre of itself alone
    centre = np.zeros(len(stars), bool)
    none = np.int64(len(stars))
    while undecided.any():
        best, cosine = np.full(len(stars), none), np.zeros(len(stars), np.float32)
        spans = [span for span in spans if _look_beside(reader, span, undecided, centre, best, cosine, least)]
        centre |= undecided & (best == none)
        undecided &= ~centre
        open_rows = np.flatnonzero(undecided)
        joins = open_rows[centre[best[open_rows]]]
        stars.join(joins, best[joins], SEMANTIC, 1 - cosine[joins])
        undecided[joins] = False


def _look_beside(
    reader: Reader,
    span: tuple[int, int],
    undecided: NDArray[np.bool_],
    centre: NDArray[np.bool_],
    best: Rows,
    cosine: NDArray[np.float32],
    least: float,
) -> bool:
    """Note in `best` and `cosine` the best row beside each undecided one of a cluster; whether it has any."""
    begin, end = span
    asks = np.ones(end - begin, bool)
    some = False
    for at in range(begin, end, BLOCK):
        if not asks[at - begin :].any():
            break
        rows, vectors = _loaded(reader, at, min(end, at + BLOCK))
        alive = undecided[rows] | centre[rows]
        for other in range(at, end, BLOCK):
            own = asks[other - begin : other - begin + BLOCK]
            if not own.any():
                continue
            others, beside = (rows, vectors) if other == at else _loaded(reader, other, min(end, other + BLOCK))
            own &= undecided[others]
            some |= bool(own.any())
            for start in range(0, len(rows), CHUNK):
                asking, taken = np.flatnonzero(own), slice(start, start + CHUNK)
                if not len(asking):
                    break
                cosines = vectors[taken] @ beside[asking].T
                near = (cosines >= least) & alive[taken, None] & (rows[taken, None] < others[asking])
                first, found = near.argmax(axis=0), near.any(axis=0)
                whose, who = others[asking[found]], rows[taken][first[found]]
                better = who < best[whose]
                best[whose[better]] = who[better]
                cosine[whose[better]] = cosines[first[found], found][better]
                own[asking[found]] = False  # whatever follows in this cluster is worse
    return some


def _loaded(reader: Reader, start: int, stop: int) -> tuple[Rows, Vectors]:
    """Places and normalised embeddings of some rows of a cluster, the best first."""
    table = reader.rows(start, stop)
    assert table is not None  # the spans lie within the rows
    column = table.column("embedding").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    halves = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    return table.column(ROW).to_numpy(), unit(halves)
