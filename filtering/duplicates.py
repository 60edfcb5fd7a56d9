"""Near duplicates: pictures that look the same (pHash) or mean the same (embedding), as a column of groups.

Groups are stars, not chains: rows are visited from the best on, and a row joins the group of the first centre that is
directly within the distance. First by looks, then by meaning: a centre by looks that means the same as a better row
takes its group along. So a row of a group is one step by looks and one by meaning from its centre at most, however many
pictures lie between. A selection then keeps the best row of each group that passes its other rules.

Exact duplicates need no step: their group is the sha256 that `source` holds.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from filtering.expression import Name
from filtering.likeness import join_alike
from filtering.meaning import join_same_meaning
from filtering.phash import FARTHEST
from filtering.phash import GROUP as HASH
from filtering.rows import shards_of
from filtering.stars import KINDS, Rows, Stars
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

STEP_VERSION = 2

SCHEMA = pa.schema([("key", pa.string()), ("group", pa.string()), ("kind", pa.string()), ("distance", pa.float32())])


class Duplicates(Settings):
    """What counts as the same picture, and which of several is the best."""

    phash_distance: int | None = Field(default=10, ge=0, le=FARTHEST)
    """Bits of 64; needs the column group `hash`. None: not looked at."""
    aspect_tolerance: float = Field(default=1.08, ge=1.0)
    """How far the shapes of two pictures with near hashes may differ, longer by shorter ratio: cropping 2% of every
    side of a picture within 3:1 changes it by less."""
    embeddings: str | None = None
    """Column group with embeddings, or the beginning of its name, such as `clip`; None: not looked at."""
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


def duplicates_step(datasets: Sequence[Dataset], settings: Duplicates) -> Step:
    """The step that compares all rows of `datasets` with each other; it writes a group to each of them."""
    others = sorted({column for name in settings.prefer for d in datasets for column in _group_of(d, name)})
    wanted = tuple(dict.fromkeys((SOURCE, *settings.groups, *others)))
    reads = tuple(Reads(data, tuple(group for group in wanted if data.entries(group))) for data in datasets)
    return Step("duplicates", STEP_VERSION, settings.model_dump(mode="json"), reads)


def duplicates_group(datasets: Sequence[Dataset], settings: Duplicates) -> str:
    """Name of the column group: it carries the step's key, since it depends on all of the datasets."""
    return f"duplicates.{duplicates_step(datasets, settings).key8}"


def mark_duplicates(
    datasets: Sequence[Dataset], settings: Duplicates, on_progress: ProgressCallback | None = None
) -> list[Commit]:
    """Write to each dataset the group of every row that has a near duplicate in any of them: the key of the group's
    centre, null for a row that has none; what made it one (phash, semantic, centre), and how near it is to the row
    that it joined.

    Memory: about 100 bytes a row, however many pairs there are, and for embeddings the sample of k-means (at most
    384 MiB at 768 numbers) and a few blocks of vectors. Embeddings are laid out by cluster on disk beside the first
    dataset, `probes` times, while they are compared.

    Raises:
        ConfigurationError: a dataset with images lacks one of the groups, or all datasets do.
    """
    for group in settings.groups:
        lacking = [dataset for dataset in datasets if not dataset.entries(group)]
        if pictured := [dataset for dataset in lacking if dataset.entries(IMAGES) or len(lacking) == len(datasets)]:
            raise ConfigurationError(f"{pictured[0].root} has no column group '{group}'; run the step that writes it.")
    step = duplicates_step(datasets, settings)
    runs = [StepRun(dataset, step, on_progress) for dataset in datasets]
    found = [run.committed for run in runs]
    if all(found):
        return [commit for commit in found if commit]
    places = _places(datasets, settings.prefer)
    stars = Stars(len(places))
    if settings.phash_distance is not None:
        join_alike(datasets, places, stars, settings.phash_distance, settings.aspect_tolerance)
    if settings.embeddings:
        work = datasets[0].store.work(".work")
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="semantic-", dir=work) as folder:
            join_same_meaning(
                datasets,
                places,
                stars,
                settings.embeddings,
                settings.cosine,
                settings.probes,
                settings.seed,
                Path(folder),
            )
    return _write(datasets, runs, places, stars)


def _places(datasets: Sequence[Dataset], prefer: Sequence[str]) -> Rows:
    """For each row how many rows are better: 0 for the best of all."""
    columns: list[list[NDArray[Any]]] = [[] for _ in prefer]
    total = 0
    for _, shard in shards_of(datasets):
        total += len(shard)
        for name, parts in zip(prefer, columns, strict=True):
            parts.append(np.nan_to_num(Name(name).numbers(shard), nan=-np.inf))
    if not prefer:
        return np.arange(total)
    order = np.lexsort(
        [-np.concatenate(parts) for parts in reversed(columns)]
    )  # stable: the first row before its equals
    places = np.empty(total, np.int64)
    places[order] = np.arange(total)
    return places


def _write(datasets: Sequence[Dataset], runs: Sequence[StepRun], places: Rows, stars: Stars) -> list[Commit]:
    centres = stars.centres()
    named = np.unique(centres[centres >= 0])
    keys = np.zeros(len(named), "V16")
    is_centre = np.zeros(len(stars), bool)
    is_centre[named] = True
    first = 0
    for _, shard in shards_of(datasets):
        own = places[first : first + len(shard)]
        there = np.flatnonzero(is_centre[own])
        texts = shard.column(SOURCE, "key").take(pa.array(there)).to_pylist()
        keys[np.searchsorted(named, own[there])] = [bytes.fromhex(text) for text in texts]
        first += len(shard)
    commits, first = [], 0
    for dataset, run in zip(datasets, runs, strict=True):
        pending = set(run.pending(dataset.shard_numbers))
        for _, shard in shards_of([dataset]):
            own = places[first : first + len(shard)]
            first += len(shard)
            if shard.shard in pending:
                output = run.shard(shard.shard)
                table = _table(shard.column(SOURCE, "key"), centres[own], named, keys, stars, own)
                output.columns(f"duplicates.{run.step.key8}", table)
                output.finish(len(own))
        commits.append(run.commit())
    return commits


def _table(
    own_keys: pa.ChunkedArray, centres: Rows, named: Rows, keys: NDArray[np.void], stars: Stars, own: Rows
) -> pa.Table:
    """The rows of one shard: `centres` of theirs, `keys` of all `named` centres, their `own` places."""
    alone = centres < 0
    groups: list[str | None] = [None] * len(own)
    for row in np.flatnonzero(~alone).tolist():
        groups[row] = bytes(keys[np.searchsorted(named, centres[row])]).hex()
    kinds = pa.array(np.array(KINDS, dtype=object)[stars.kind[own]], pa.string(), mask=alone)
    distances = pa.array(stars.distance[own], pa.float32(), mask=alone)
    columns = {"key": own_keys, "group": pa.array(groups, pa.string()), "kind": kinds, "distance": distances}
    return pa.table(columns, schema=SCHEMA)


def _group_of(dataset: Dataset, name: str) -> list[str]:
    """The column group that a name of `prefer` stands in, where it is not `source`."""
    head = dataset.head
    groups = list(head.schemas) if head else []
    asked = name.partition(":")[0]
    return [group for group in groups if group == asked or group.startswith(asked + ".")]
