"""The step that keeps the rows worth training on and writes them as globally shuffled shards of a new
dataset.

Only columns are held in memory; images are read one at a time, by random access, and copied as the bytes they
are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from filtering.duplicates import ExactDuplicates
from filtering.geometry import Drop, Geometry
from pipelines.columns import REJECT_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.settings import Settings
from pipelines.shards import ImageShard
from pipelines.steps import ProgressCallback, Reads, ShardOutput, Step, StepRun

STEP_VERSION = 1


class Threshold(Settings):
    """Least value of a score that an image needs."""

    group: str
    """Column group with the score, such as `clarity` or `aesthetic.laion-v2-21dd590f`."""
    column: str
    at_least: float

    def judge(self, value: float | None, why_absent: str | None) -> Drop | None:
        """None for a value that is high enough, or why the row leaves."""
        name = self.group.partition(".")[0]
        if value is None:
            return Drop("unscored", f"{name} {self.column}: {why_absent or 'no value'}")
        if value < self.at_least:
            return Drop(f"low_{name}", f"{self.column} {value:.3f} < {self.at_least:g}")
        return None


class Selection(Settings):
    """Which rows stay, and how they are written. All of it decides the bytes that come out."""

    geometry: Geometry = Geometry()
    thresholds: tuple[Threshold, ...] = ()
    carry: tuple[str, ...] = ()
    """Column groups that go along besides those of the thresholds: captions by version."""
    rows_per_shard: int = Field(default=1000, ge=1)
    seed: int = 0
    """Of the global shuffle."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Every column group that is carried into the new dataset."""
        return tuple(dict.fromkeys((*self.carry, *(threshold.group for threshold in self.thresholds))))


@dataclass(frozen=True)
class _Rows:
    """All rows of all datasets, in the order dataset, shard, row."""

    source: pa.Table
    groups: dict[str, pa.Table]
    origin: list[tuple[int, int]]
    """Dataset (its number among those given) and shard of each row."""


def select_step(datasets: Sequence[Dataset], selection: Selection) -> Step:
    """The step that writes the selected rows of `datasets`."""
    wanted = (SOURCE, IMAGES, *selection.groups)
    reads = tuple(Reads(d, tuple(group for group in wanted if d.entries(group))) for d in datasets)
    return Step("select", STEP_VERSION, selection.model_dump(mode="json"), reads)


def select(
    datasets: Sequence[Dataset],
    target: Dataset,
    selection: Selection,
    on_progress: ProgressCallback | None = None,
) -> Commit:
    """Write the rows of `datasets` that pass to `target`, in an order that the seed and their keys alone
    decide.

    The rules, in order: geometry, thresholds, exact duplicates (the first in the order dataset, shard, row
    stays). Rows without an image, which are text, pass all of them. Every row that leaves stands in the
    rejects with its reason and what was measured. A carried group that a dataset lacks is null in its rows.

    Raises:
        ConfigurationError: a threshold's group is absent from a dataset with images, a carried one from all.
        HarmonError: no row passes.
    """
    _check_groups(datasets, selection)
    run = StepRun(target, select_step(datasets, selection), on_progress)
    if run.committed:
        return run.committed
    rows = _read(datasets, selection.groups)
    drops = _judge(rows, selection)
    kept, dropped = _shuffled(rows.source.column("key").to_pylist(), drops, selection.seed)
    if not len(kept):
        reasons = ", ".join(sorted({drop.reason for drop in drops if drop}))
        raise HarmonError(
            f"None of {len(drops)} rows passes the selection for {target.root} ({reasons}); relax its rules."
        )
    shards = -(-len(kept) // selection.rows_per_shard)
    leaving = np.array_split(dropped, shards)
    for shard in run.pending(range(shards)):
        chosen = kept[shard * selection.rows_per_shard : (shard + 1) * selection.rows_per_shard]
        output = run.shard(shard)
        _write_images(output, chosen, rows, datasets)
        output.columns(SOURCE, rows.source.take(chosen))
        for group, table in rows.groups.items():
            output.columns(group, table.take(chosen))
        output.rejects(_rejects(rows.source.take(leaving[shard]), [drops[row] for row in leaving[shard]]))
        output.finish(len(chosen) + len(leaving[shard]))
    return run.commit()


def _check_groups(datasets: Sequence[Dataset], selection: Selection) -> None:
    for group in selection.groups:
        if not any(dataset.entries(group) for dataset in datasets):
            names = ", ".join(str(dataset.root) for dataset in datasets)
            raise ConfigurationError(f"None of {names} has the column group '{group}' that the selection carries.")
    for threshold in selection.thresholds:
        for dataset in datasets:
            if dataset.entries(IMAGES) and not dataset.entries(threshold.group):
                raise ConfigurationError(
                    f"{dataset.root} has images but no column group '{threshold.group}' for the threshold; "
                    "run the step that writes it first."
                )


def _read(datasets: Sequence[Dataset], groups: Sequence[str]) -> _Rows:
    origin = [
        (d, shard) for d, data in enumerate(datasets) for shard in data.shard_numbers for _ in range(data.rows(shard))
    ]
    source = pa.concat_tables([data.whole_table(SOURCE) for data in datasets])
    return _Rows(source, {group: _merged(datasets, group) for group in groups}, origin)


def _merged(datasets: Sequence[Dataset], group: str) -> pa.Table:
    """The group over all datasets; rows of one without it are null, and failed where it has a status."""
    schema = next(data.table(group, data.shard_numbers[0]).schema for data in datasets if data.entries(group))
    tables = []
    for data in datasets:
        if data.entries(group):
            tables.append(data.whole_table(group).cast(schema))
            continue
        keys = data.whole_table(SOURCE, ["key"]).column("key")
        known = {
            "key": keys,
            "status": pa.repeat("failed", len(keys)),
            "reason": pa.repeat("not_made", len(keys)),
        }
        columns = [known[f.name] if f.name in known else pa.nulls(len(keys), f.type) for f in schema]
        tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables)


def _judge(rows: _Rows, selection: Selection) -> list[Drop | None]:
    """For each row why it leaves, or None."""
    names = ("key", "task", "width", "height", "sha256")
    columns = [rows.source.column(name).to_pylist() for name in names]
    scores = [list(_scores(rows.groups[t.group], t.column)) for t in selection.thresholds]
    duplicates, seen = ExactDuplicates(), set()
    drops: list[Drop | None] = []
    for row, (key, task, width, height, sha256) in enumerate(zip(*columns, strict=True)):
        drop = Drop("duplicate_key", "the key stands in an earlier row") if key in seen else None
        seen.add(key)
        if task != "text" and drop is None:
            drop = selection.geometry.judge(width, height)
            for threshold, values in zip(selection.thresholds, scores, strict=True):
                drop = drop or threshold.judge(*values[row])
            drop = drop or duplicates.judge(sha256, key)
        drops.append(drop)
    return drops


def _scores(table: pa.Table, column: str) -> Iterator[tuple[float | None, str | None]]:
    """Value and reason of its absence, by row."""
    if column not in table.column_names:
        raise ConfigurationError(f"There is no column '{column}' to hold a threshold to; known: {table.column_names}.")
    values = table.column(column).to_pylist()
    reasons = table.column("reason").to_pylist() if "reason" in table.column_names else [None] * len(values)
    return zip(values, reasons, strict=True)


def _shuffled(
    keys: Sequence[str], drops: Sequence[Drop | None], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that stay and rows that leave, each in the order of sha256(seed, key)."""
    places = [hashlib.sha256(f"{seed}\n{key}".encode()).digest() for key in keys]
    order = np.array(sorted(range(len(keys)), key=lambda row: (places[row], row)), dtype=np.int64)
    stays = np.array([drop is None for drop in drops], dtype=bool)[order]
    return order[stays], order[~stays]


def _write_images(output: ShardOutput, chosen: NDArray[np.int64], rows: _Rows, datasets: Sequence[Dataset]) -> None:
    """Copy the images of the chosen rows, bytes untouched, with their captions added to the JSON view."""

    @lru_cache(maxsize=64)
    def opened(dataset: int, shard: int) -> ImageShard:
        return datasets[dataset].images(shard)

    source = rows.source.take(chosen)
    keys, tasks = source.column("key").to_pylist(), source.column("task").to_pylist()
    captions = _captions(rows, chosen)
    for row, key, task, texts in zip(chosen, keys, tasks, captions, strict=True):
        if task == "text":
            continue
        image = opened(*rows.origin[row]).find(key)
        if image is None:
            raise HarmonError(
                f"The row {key} has no image in {datasets[rows.origin[row][0]].root}; run `harmon audit`."
            )
        view: dict[str, object] = image.view | ({"captions": texts} if texts else {})
        output.images().add(key, image.data, image.extension, view)


def _captions(rows: _Rows, chosen: NDArray[np.int64]) -> list[dict[str, Any]]:
    """For each chosen row its caption by caption group, where it has one."""
    found: list[dict[str, Any]] = [{} for _ in chosen]
    for group, table in rows.groups.items():
        if group.startswith("caption."):
            for place, text in enumerate(table.column("text").take(chosen).to_pylist()):
                found[place] |= {group: text} if text is not None else {}
    return found


def _rejects(source: pa.Table, drops: Sequence[Drop | None]) -> pa.Table:
    columns = {name: source.column(name) for name in ("key", "source", "row_id", "url")}
    columns["reason"] = pa.array([drop.reason if drop else None for drop in drops], pa.string())
    columns["detail"] = pa.array([drop.detail if drop else None for drop in drops], pa.string())
    return pa.table(columns, schema=REJECT_SCHEMA)
