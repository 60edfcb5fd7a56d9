"""Near duplicates: pictures that look the same (pHash) or mean the same (embedding), as a column of groups.

Groups are stars, not chains: rows are visited from the best on, and a row joins the group of the first centre that is
directly within the distance. So two rows of a group are never farther apart than twice the distance, however many
pictures lie between them. A selection then keeps the best row of each group that passes its other rules.

Exact duplicates need no step: their group is the sha256 that `source` holds.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from filtering.expression import Name
from filtering.phash import FARTHEST, BandedIndex, numbers
from filtering.phash import GROUP as HASH
from filtering.rows import shards_of
from filtering.shuffle import PLACE, ROW, Reader, Writer
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE, Commit
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

STEP_VERSION = 1
CLUSTER_ROWS = 500  # rows that a cluster should have: comparing costs so many products a row and probe
SAMPLE = 32  # rows of each cluster that k-means learns from
ITERATIONS = 4
CHUNK = 512  # rows compared at a time with the rest of their cluster

SCHEMA = pa.schema([("key", pa.string()), ("group", pa.string()), ("kind", pa.string()), ("distance", pa.float32())])
Rows = NDArray[np.int64]


class Duplicates(Settings):
    """What counts as the same picture, and which of several is the best."""

    phash_distance: int | None = Field(default=10, ge=0, le=FARTHEST)
    """Bits of 64; needs the column group `hash`. None: not looked at."""
    aspect_tolerance: float = Field(default=1.08, ge=1.0)
    """How far the shapes of two pictures with near hashes may differ, longer by shorter ratio: cropping 2% of every
    side of a picture within 3:1 changes it by less."""
    embeddings: str | None = None
    """Column group with embeddings, such as `clip.vit-l-14-quickgelu-float32`; None: not looked at."""
    cosine: float = Field(default=0.95, gt=0, le=1)
    """Of two embeddings, from which on they mean the same."""
    probes: int = Field(default=3, ge=1)
    """Nearest clusters in which a row is compared: more find more pairs that a border parts, at their square's cost."""
    prefer: tuple[str, ...] = ("caption_length", "pixels")
    """Columns that decide which row is the best, the larger value first: a dense caption, then size; a score may
    follow. Among equals the first row is the best."""
    seed: int = 0
    """Of k-means."""

    @model_validator(mode="after")
    def _looks_at_something(self) -> "Duplicates":
        if self.phash_distance is None and self.embeddings is None:
            raise ValueError("give phash_distance, embeddings or both")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Column groups that are read besides `source`."""
        hashed = (HASH,) if self.phash_distance is not None else ()
        return (*hashed, *((self.embeddings,) if self.embeddings else ()))


@dataclass(frozen=True)
class Pairs:
    """Two rows each, by number, and how far apart they are."""

    left: Rows
    right: Rows
    distance: NDArray[np.float32]
    kind: str


def duplicates_step(datasets: Sequence[Dataset], settings: Duplicates) -> Step:
    """The step that compares all rows of `datasets` with each other; it writes a group to each of them."""
    others = sorted({column for name in settings.prefer for d in datasets for column in _group_of(d, name)})
    wanted = tuple(dict.fromkeys((SOURCE, *settings.groups, *others)))
    return Step("duplicates", STEP_VERSION, settings.model_dump(mode="json"), tuple(Reads(d, wanted) for d in datasets))


def duplicates_group(datasets: Sequence[Dataset], settings: Duplicates) -> str:
    """Name of the column group: it carries the step's key, since it depends on all of the datasets."""
    return f"duplicates.{duplicates_step(datasets, settings).key8}"


def mark_duplicates(
    datasets: Sequence[Dataset], settings: Duplicates, on_progress: ProgressCallback | None = None
) -> list[Commit]:
    """Write to each dataset the group of every row that has a near duplicate in any of them: the key of the group's
    centre, null for a row that has none; what made it one (phash, semantic, centre), and how near it is to the centre.

    Memory: 48 bytes a row with a hash, 40 bytes a pair, and a few clusters of embeddings. Embeddings are laid out by
    cluster on disk beside the first dataset, `probes` times, while they are compared.

    Raises:
        ConfigurationError: a dataset lacks one of the groups.
    """
    for dataset in datasets:
        for group in settings.groups:
            if not dataset.entries(group):
                raise ConfigurationError(f"{dataset.root} has no column group '{group}'; run the step that writes it.")
    step = duplicates_step(datasets, settings)
    runs = [StepRun(dataset, step, on_progress) for dataset in datasets]
    found = [run.committed for run in runs]
    if all(found):
        return [commit for commit in found if commit]
    pairs = []
    if settings.phash_distance is not None:
        pairs.append(_alike(datasets, settings.phash_distance, settings.aspect_tolerance))
    if settings.embeddings:
        work = datasets[0].store.work(".work")
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="semantic-", dir=work) as folder:
            pairs.append(_meaning_alike(datasets, settings, Path(folder)))
    centres = _stars(pairs, _ranks(datasets, settings.prefer))
    return _write(datasets, runs, centres)


def _alike(datasets: Sequence[Dataset], distance: int, tolerance: float) -> Pairs:
    """Rows whose hashes lie within `distance` bits and whose shapes agree."""
    hashes, rows, shapes, first = [], [], [], 0
    for _, shard in shards_of(datasets):
        texts = shard.values(HASH, "phash")
        there = np.flatnonzero([text is not None for text in texts])
        hashes.append(numbers([texts[row] for row in there]))
        shapes.append((shard.numbers(SOURCE, "width") / shard.numbers(SOURCE, "height"))[there])
        rows.append(there + first)
        first += len(shard)
    values, number, shape = np.concatenate(hashes), np.concatenate(rows), np.concatenate(shapes)
    index, left, right = BandedIndex(values), [], []
    for who, whom in index.pairs(values, distance):
        ratio = shape[who] / shape[whom]
        fits = (who < whom) & (np.maximum(ratio, 1 / ratio) <= tolerance)
        left.append(who[fits])
        right.append(whom[fits])
    both = np.unique(np.stack([np.concatenate(left), np.concatenate(right)]), axis=1)
    bits = np.bitwise_count(values[both[0]] ^ values[both[1]]).astype(np.float32)
    return Pairs(number[both[0]], number[both[1]], bits, "phash")


def _meaning_alike(datasets: Sequence[Dataset], settings: Duplicates, folder: Path) -> Pairs:
    """Rows whose embeddings have at least the cosine, compared within clusters (the outline of SemDeDup, Abbas et al.
    2023), each row in the `probes` nearest of them."""
    import faiss

    group = settings.embeddings or ""
    total = sum(entry.rows for dataset in datasets for entry in dataset.entries(group))
    clusters = max(1, total // CLUSTER_ROWS)
    sample = _sample(datasets, group, clusters * SAMPLE, total, settings.seed)
    if not len(sample):
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), "semantic")
    means = faiss.Kmeans(
        sample.shape[1], min(clusters, len(sample)), niter=ITERATIONS, seed=settings.seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=SAMPLE,
    )  # fmt: skip
    means.train(sample)
    probes = min(settings.probes, means.k)
    writer, first = Writer(folder, total * probes), 0
    for _, shard in shards_of(datasets):
        vectors, there = _vectors(shard.column(group, "embedding"))
        if len(there):
            _, nearest = means.index.search(vectors, probes)
            places = nearest.reshape(-1).astype(np.uint64) * np.uint64((1 << 64) // means.k)
            many = np.repeat(np.arange(len(there)), probes)
            halves = pa.FixedSizeListArray.from_arrays(vectors.astype(np.float16)[many].reshape(-1), vectors.shape[1])
            writer.add(pa.table({PLACE: places, ROW: (there + first)[many], "embedding": halves}))
        first += len(shard)
    writer.close()
    found = list(_within_clusters(Reader(folder), settings.cosine))
    left, right, cosine = (np.concatenate([one[part] for one in found]) for part in range(3))
    both, once = np.unique(np.stack([left, right]), axis=1, return_index=True)
    return Pairs(both[0], both[1], (1 - cosine[once]).astype(np.float32), "semantic")


def _within_clusters(reader: Reader, least: float) -> Iterator[tuple[Rows, Rows, NDArray[np.float32]]]:
    """Pairs of rows of one cluster with at least this cosine, the lower row number first."""
    yield np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    for rows, vectors in _clusters(reader):
        for start in range(0, len(rows), CHUNK):
            cosines = vectors[start : start + CHUNK] @ vectors[start:].T  # each pair once
            who, whom = np.nonzero(cosines >= least)
            who, whom = who[who < whom], whom[who < whom]
            one, other = rows[who + start], rows[whom + start]
            yield np.minimum(one, other), np.maximum(one, other), cosines[who, whom]


def _clusters(reader: Reader) -> Iterator[tuple[Rows, NDArray[np.float32]]]:
    """Row numbers and normalised vectors of each cluster, of which one is in memory, and a partition."""
    start, kept = 0, reader.rows(0, CHUNK)
    while kept is not None and kept.num_rows:
        places = kept.column(PLACE).to_numpy()
        while places[-1] == places[0]:  # the cluster may go on
            more = reader.rows(start + kept.num_rows, start + kept.num_rows + CHUNK)
            if more is None:
                break
            kept = pa.concat_tables([kept, more]).combine_chunks()
            places = kept.column(PLACE).to_numpy()
        end = int(np.searchsorted(places, places[0], side="right"))
        column = kept.column("embedding").combine_chunks().slice(0, end)
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(end, -1).astype(np.float32)
        yield kept.column(ROW).to_numpy()[:end], _unit(vectors)
        start += end
        kept = reader.rows(start, start + CHUNK)


def _sample(datasets: Sequence[Dataset], group: str, wanted: int, total: int, seed: int) -> NDArray[np.float32]:
    """About `wanted` of the embeddings, drawn evenly over all shards."""
    draw = np.random.default_rng(seed)
    parts = []
    for _, shard in shards_of(datasets):
        vectors, _ = _vectors(shard.column(group, "embedding"))
        parts.append(vectors[draw.random(len(vectors)) < wanted / max(1, total)])
    some = [part for part in parts if len(part)]
    return np.concatenate(some) if some else np.zeros((0, 1), np.float32)


def _vectors(column: pa.ChunkedArray) -> tuple[NDArray[np.float32], Rows]:
    """Normalised embeddings [M, D] of the rows that have one, and the numbers of those rows."""
    there = np.flatnonzero(np.asarray(column.is_valid(), dtype=bool))
    if not len(there):
        return np.zeros((0, 1), np.float32), there
    values: NDArray[Any] = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return _unit(values.astype(np.float32).reshape(len(there), -1)), there


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = np.divide(vectors, np.where(lengths == 0, 1, lengths), dtype=np.float32)
    return found


def _ranks(datasets: Sequence[Dataset], prefer: Sequence[str]) -> Rows:
    """For each row how many rows are better: 0 for the best of all."""
    columns: list[list[NDArray[Any]]] = [[] for _ in prefer]
    total = 0
    for _, shard in shards_of(datasets):
        total += len(shard)
        for name, parts in zip(prefer, columns, strict=True):
            parts.append(np.nan_to_num(Name(name).numbers(shard), nan=-np.inf))
    worths = [-np.concatenate(parts) for parts in columns]
    order = np.lexsort((np.arange(total), *reversed(worths)))
    ranks = np.empty(total, np.int64)
    ranks[order] = np.arange(total)
    return ranks


def _stars(pairs: Sequence[Pairs], ranks: Rows) -> dict[int, tuple[int, str, float]]:
    """Row to its centre, kind and distance, for every row of a group of two or more (a centre is its own)."""
    better = [np.where(ranks[one.left] < ranks[one.right], one.left, one.right) for one in pairs]
    worse = [np.where(ranks[one.left] < ranks[one.right], one.right, one.left) for one in pairs]
    left, right = np.concatenate(better), np.concatenate(worse)
    distance = np.concatenate([one.distance for one in pairs])
    kinds = np.repeat(np.arange(len(pairs)), [len(one.left) for one in pairs])
    centres: dict[int, tuple[int, str, float]] = {}
    for edge in np.lexsort((ranks[right], ranks[left])).tolist():
        centre, row = int(left[edge]), int(right[edge])
        if row not in centres and centres.get(centre, (centre,))[0] == centre:
            centres[centre] = (centre, "centre", 0.0)
            centres[row] = (centre, pairs[kinds[edge]].kind, float(distance[edge]))
    return centres


def _write(
    datasets: Sequence[Dataset], runs: Sequence[StepRun], centres: dict[int, tuple[int, str, float]]
) -> list[Commit]:
    keys: dict[int, str] = {}
    wanted = np.array(sorted({centre for centre, _, _ in centres.values()}), np.int64)
    spans, first = [], 0
    for number, shard in shards_of(datasets):
        own = wanted[(wanted >= first) & (wanted < first + len(shard))]
        named = shard.values(SOURCE, "key")
        keys |= {int(row): named[row - first] for row in own}
        spans.append((number, shard.shard, first, named))
        first += len(shard)
    commits = []
    for number, run in enumerate(runs):
        pending = set(run.pending(datasets[number].shard_numbers))
        for _, shard_number, begin, named in (span for span in spans if span[0] == number and span[1] in pending):
            told = [centres.get(begin + row) for row in range(len(named))]
            rows = [
                {"key": key, "group": keys[one[0]], "kind": one[1], "distance": one[2]} if one else {"key": key}
                for key, one in zip(named, told, strict=True)
            ]
            output = run.shard(shard_number)
            output.columns(f"duplicates.{run.step.key8}", pa.Table.from_pylist(rows, schema=SCHEMA))
            output.finish(len(named))
        commits.append(run.commit())
    return commits


def _group_of(dataset: Dataset, name: str) -> list[str]:
    """The column group that a name of `prefer` stands in, where it is not `source`."""
    head = dataset.head
    groups = list(head.schemas) if head else []
    asked = name.partition(":")[0]
    return [group for group in groups if group == asked or group.startswith(asked + ".")]
