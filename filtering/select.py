"""The step that keeps the rows worth training on and writes them as globally shuffled shards of a new dataset.

Three passes. `plan` decides about every row from columns alone. Then the columns of all rows go once through an
external shuffle on disk (filtering.shuffle). Then shards are written, each independent of the others, their pictures
read from where they lie, by random access. So the shards' bytes depend on inputs and selection alone, not on the number
of workers, and a killed run is repeated from the shuffle, or from the shards that it has finished.

Memory: what `plan` needs, then about 100 MiB and one shard's columns for each worker. Disk: every row's carried
columns once, compressed, in the work folder of the new dataset.
"""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.captions import CHOSEN, chosen_captions
from filtering.expression import WORDS, names_in, parse_condition, resolve
from filtering.plan import Plan, plan
from filtering.rows import Mask, ShardRows, shards_of
from filtering.selection import Selection
from filtering.shuffle import PLACE, ROW, Reader, Writer, is_written, places_of
from pipelines.children import PR_SET_PDEATHSIG
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.shards import ImageShard
from pipelines.steps import ProgressCallback, Reads, ShardOutput, Step, StepRun
from pipelines.workspace import WORK, Workspace

STEP_VERSION = 2
OPEN = 64  # image shards that a worker holds open: each is a memory map and 8 bytes an image
BUCKET = "bucket"
VIEW_LENGTH = 16  # longer lists, such as embeddings, are no scores and stay out of the view

DATASET, SHARD, MEMBER = "dataset", "shard", "member"
"""Columns of a shuffled row: where its picture lies."""


def select_step(datasets: Sequence[Dataset], selection: Selection) -> Step:
    """The step that writes the selected rows of `datasets`."""
    reads = tuple(Reads(dataset, _read_groups(dataset, selection)) for dataset in datasets)
    return Step("select", STEP_VERSION, selection.configuration(), reads)


def select(
    datasets: Sequence[Dataset],
    target: Dataset,
    selection: Selection,
    on_progress: ProgressCallback | None = None,
    workers: int = 1,
) -> Commit:
    """Write the rows of `datasets` that pass to `target`, in an order that the seed and their keys alone decide.

    `filtering.plan.plan` says in which order the rules judge. Every row that leaves stands in the rejects with its
    reason and what was measured. A carried group that a dataset lacks is null in its rows. `workers` processes write
    the shards; it does not change a byte.

    Raises:
        ConfigurationError: a rule's group is absent from a dataset with images, a carried one from all.
        HarmonError: no row passes.
    """
    _check_groups(datasets, selection)
    run = StepRun(target, select_step(datasets, selection), on_progress)
    if run.committed:
        return run.committed
    work = Workspace(target.store.work(f"{WORK}/{run.step.key}/shuffle"))
    work.acquire()
    layout = _shuffled(datasets, target, selection, work.folder)
    pending = run.pending(range(layout.shards))
    if workers > 1 and len(pending) > 1:
        _write_apart(datasets, target, selection, layout, pending, workers, run, on_progress)
    else:
        shards = _Shards(datasets, selection, layout)
        for shard in pending:
            shards.write(run.shard(shard), shard)
    work.discard()
    return run.commit()


@dataclass(frozen=True)
class _Layout:
    """How many rows there are, and which go into which shard."""

    folder: Path
    kept: int
    dropped: int
    rows_per_shard: int

    @property
    def shards(self) -> int:
        return -(-self.kept // self.rows_per_shard)

    def kept_in(self, shard: int) -> tuple[int, int]:
        """Places of the rows of a shard."""
        return shard * self.rows_per_shard, min(self.kept, (shard + 1) * self.rows_per_shard)

    def dropped_in(self, shard: int) -> tuple[int, int]:
        """The rows that left are spread evenly, so that no shard holds all rejects."""
        return self.dropped * shard // self.shards, self.dropped * (shard + 1) // self.shards


def _shuffled(datasets: Sequence[Dataset], target: Dataset, selection: Selection, folder: Path) -> _Layout:
    """Decide, and lay all rows out in their order; what a killed run has finished of that is used again."""
    kept, dropped = folder / "kept", folder / "dropped"
    if not (is_written(kept) and is_written(dropped)):
        for old in (kept, dropped):
            shutil.rmtree(old, ignore_errors=True)
        made = plan(datasets, selection)
        if not made.kept:
            reasons = ", ".join(reason for reason, number in sorted(made.counts.items()) if reason and number)
            raise HarmonError(
                f"None of {made.rows} rows passes the selection for {target.root} ({reasons}); relax its rules."
            )
        _lay_out(made, Writer(kept, made.kept), Writer(dropped, made.rows - made.kept))
    rows = selection.rows_per_shard if selection.shard_bytes is None else _rows_of(datasets, selection.shard_bytes)
    return _Layout(folder, len(Reader(kept)), len(Reader(dropped)), rows)


def _rows_of(datasets: Sequence[Dataset], shard_bytes: int) -> int:
    """Rows that make a shard of this size, at the mean size of the inputs' pictures with their headers and views."""
    entries = [entry for dataset in datasets for entry in dataset.entries(IMAGES)]
    rows = sum(entry.rows for entry in entries)
    return max(1, shard_bytes * rows // max(1, sum(entry.bytes for entry in entries))) if rows else 10_000


def _lay_out(made: Plan, kept: Writer, dropped: Writer) -> None:
    selection, schemas = made.selection, _schemas(made.datasets, made.selection.groups)
    for number, rows in shards_of(made.datasets):
        stays = made.codes[number, rows.shard] == 0
        source = made.datasets[number].table(SOURCE, rows.shard).select(SOURCE_SCHEMA.names)
        keys = source.column("key").to_pylist()
        first, count = made.firsts[number, rows.shard], len(rows)
        order = pa.table({PLACE: places_of(keys, selection.seed), ROW: np.arange(first, first + count, dtype=np.int64)})
        if stays.any():
            wide = _wide(rows, source, schemas)
            wide = wide.append_column(DATASET, pa.array(np.full(count, number, np.int32)))
            wide = wide.append_column(SHARD, pa.array(np.full(count, rows.shard, np.int32)))
            wide = wide.append_column(MEMBER, pa.array(rows.members()))
            for name in (PLACE, ROW):
                wide = wide.append_column(name, order.column(name))
            kept.add(wide.filter(pa.array(stays)))
        if not stays.all():
            dropped.add(_rejects(made, number, rows, source, order, ~stays))
    kept.close()
    dropped.close()


def _rejects(made: Plan, number: int, rows: ShardRows, source: pa.Table, order: pa.Table, leave: Mask) -> pa.Table:
    """The rows that leave, as rejects, with their places."""
    drops = made.drops(number, rows)
    leaving = np.flatnonzero(leave)
    columns = {name: source.column(name).take(pa.array(leaving)) for name in ("key", "source", "row_id", "url")}
    columns["reason"] = pa.array([drops[row].reason for row in leaving.tolist()], pa.string())
    columns["detail"] = pa.array([drops[row].detail for row in leaving.tolist()], pa.string())
    columns |= {name: order.column(name).take(pa.array(leaving)) for name in (PLACE, ROW)}
    return pa.table(columns)


def _wide(rows: ShardRows, source: pa.Table, schemas: Mapping[str, pa.Schema]) -> pa.Table:
    """Source and all carried groups beside each other, their columns named GROUP/COLUMN."""
    columns = {f"{SOURCE}/{name}": source.column(name) for name in source.column_names}
    for group, schema in schemas.items():
        table = _group_of(rows, group, schema)
        columns |= {f"{group}/{name}": table.column(name) for name in table.column_names}
    return pa.table(columns)


def _group_of(rows: ShardRows, group: str, schema: pa.Schema) -> pa.Table:
    """A carried group; where the dataset lacks it, its rows are null, and failed where it has a status."""
    if rows.has(group):
        return rows.dataset.table(group, rows.shard).cast(schema)
    count = len(rows)
    known = {
        "key": rows.column(SOURCE, "key"),
        "status": pa.repeat("failed", count),
        "reason": pa.repeat("not_made", count),
    }
    columns = [known[f.name] if f.name in known else pa.nulls(count, f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _schemas(datasets: Sequence[Dataset], groups: Sequence[str]) -> dict[str, pa.Schema]:
    """The columns of each carried group, as the first dataset that has it says."""
    found = {}
    for group in groups:
        data = next(data for data in datasets if data.entries(group))
        found[group] = data.table(group, data.entries(group)[0].shard).schema.remove_metadata()
    return found


class _Shards:
    """Writes shards from the shuffled rows. Any shard can be written by any process."""

    def __init__(self, datasets: Sequence[Dataset], selection: Selection, layout: _Layout) -> None:
        self._datasets = datasets
        self._selection = selection
        self._layout = layout
        self._kept = Reader(layout.folder / "kept")
        self._dropped = Reader(layout.folder / "dropped")
        self._groups = list(_schemas(datasets, selection.groups))
        self._images = lru_cache(maxsize=OPEN)(self._opened)
        heads = [dataset.head for dataset in datasets]
        self._from = [
            {"dataset": dataset.name, "commit": head.number if head else -1}
            for dataset, head in zip(datasets, heads, strict=True)
        ]

    def write(self, output: ShardOutput, shard: int) -> None:
        """Images, columns, rejects and receipt of one shard."""
        wide = self._kept.rows(*self._layout.kept_in(shard))
        assert wide is not None  # no shard is laid out without rows
        source = _part(wide, SOURCE).cast(SOURCE_SCHEMA)
        groups = {name: _part(wide, name) for name in self._groups}
        if self._selection.caption_shares:
            groups[CHOSEN] = chosen_captions(source, groups, self._selection.caption_shares, self._selection.seed)
        if self._selection.buckets is not None:
            groups[BUCKET] = self._buckets(source)
        source = self._write_images(output, wide, source, groups)
        output.columns(SOURCE, source)
        for name, table in groups.items():
            output.columns(name, table)
        rejects = self._dropped.rows(*self._layout.dropped_in(shard))
        if rejects is None:
            rejects = REJECT_SCHEMA.empty_table()
        output.rejects(rejects.select(REJECT_SCHEMA.names))
        output.finish(wide.num_rows + rejects.num_rows)

    def _write_images(
        self, output: ShardOutput, wide: pa.Table, source: pa.Table, groups: Mapping[str, pa.Table]
    ) -> pa.Table:
        """Copy the pictures, bytes untouched unless a resize is asked for; returns `source` with the sizes written."""
        places = zip(*(wide.column(name).to_pylist() for name in (DATASET, SHARD, MEMBER)), strict=True)
        rows = source.select(["key", "task", "width", "height", "bytes", "ext"]).to_pylist()
        views = _views(groups, len(rows))
        for row, (dataset, shard, member), told in zip(rows, places, views, strict=True):
            if row["task"] == "text":
                continue
            image = self._images(dataset, shard).read(member) if member >= 0 else None
            if image is None or image.key != row["key"]:
                raise HarmonError(
                    f"The row {row['key']} has no image in {self._datasets[dataset].root}; run `harmon audit`."
                )
            data, extension = image.data, image.extension
            if self._selection.resize is not None:
                data, extension, width, height = self._selection.resize.apply(data, extension, row["key"])
                if data is not image.data:
                    row |= {"width": width, "height": height, "bytes": len(data), "ext": extension}
            output.images().add(row["key"], data, extension, image.view | told | {"from": self._from[dataset]})
        if self._selection.resize is not None:
            for name in ("width", "height", "bytes", "ext"):
                at, field = source.schema.get_field_index(name), source.schema.field(name)
                source = source.set_column(at, field, pa.array([row[name] for row in rows], field.type))
        return source

    def _buckets(self, source: pa.Table) -> pa.Table:
        assert self._selection.buckets is not None
        sizes = [source.column(name).cast(pa.float64()).to_numpy() for name in ("width", "height")]
        found = self._selection.buckets.assign(*sizes).astype(np.int32)
        without = found[:, 0] == 0
        sides = {name: pa.array(found[:, at], mask=without) for at, name in enumerate(("width", "height"))}
        return pa.table({"key": source.column("key"), **sides})

    def _opened(self, dataset: int, shard: int) -> ImageShard:
        return self._datasets[dataset].images(shard)


def _part(wide: pa.Table, group: str) -> pa.Table:
    start = f"{group}/"
    names = [name for name in wide.column_names if name.startswith(start)]
    return wide.select(names).rename_columns([name.removeprefix(start) for name in names])


def _views(groups: Mapping[str, pa.Table], count: int) -> list[dict[str, Any]]:
    """What the JSON view of each row says besides what it said before: captions, scores, bucket."""
    views: list[dict[str, Any]] = [{} for _ in range(count)]
    for group, table in groups.items():
        for view, row in zip(views, table.to_pylist(), strict=True):
            if group == CHOSEN:
                if row["text"] is not None:
                    view |= {"caption": row["text"], "caption_version": row["version"]}
            elif group.startswith("caption."):
                if row["text"] is not None:
                    view.setdefault("captions", {})[group] = row["text"]
            elif group == BUCKET:
                view |= {"bucket": [row["width"], row["height"]]} if row["width"] else {}
            elif told := {name: value for name, value in row.items() if _is_score(name, value)}:
                view.setdefault("scores", {})[group] = told
    return views


def _is_score(name: str, value: object) -> bool:
    """Whether a value belongs into the view: a finite number, or a short list of them (a crop box)."""
    if name in ("key", "status", "reason") or isinstance(value, bool):
        return False
    if isinstance(value, list):
        return 0 < len(value) <= VIEW_LENGTH and all(_is_score("", one) for one in value)
    return isinstance(value, int | float) and bool(np.isfinite(value))


# Several processes


_writer: tuple[StepRun, _Shards] | None = None  # of a worker process


def _write_apart(
    datasets: Sequence[Dataset],
    target: Dataset,
    selection: Selection,
    layout: _Layout,
    pending: Sequence[int],
    workers: int,
    run: StepRun,
    on_progress: ProgressCallback | None,
) -> None:
    """Write the pending shards with several processes, neighbours by the same one: they share a partition."""
    commits = [dataset.head.number if dataset.head else None for dataset in datasets]
    inputs = [(dataset.root, commit) for dataset, commit in zip(datasets, commits, strict=True)]
    told = (inputs, target.root, selection, layout, os.getpid())
    context = multiprocessing.get_context("spawn")
    size = max(1, min(16, len(pending) // (4 * workers)))
    runs = [pending[start : start + size] for start in range(0, len(pending), size)]
    with ProcessPoolExecutor(min(workers, len(runs)), context, _begin_worker, told) as pool:
        for done in as_completed([pool.submit(_write_some, some) for some in runs]):
            done.result()
            if on_progress is not None:
                on_progress(run.progress())


def _begin_worker(
    inputs: Sequence[tuple[Any, int | None]], target: Any, selection: Selection, layout: _Layout, parent: int
) -> None:
    global _writer
    if sys.platform == "linux":  # a worker ends with the process that started it, also when that one is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    datasets = [Dataset(root, until=commit) for root, commit in inputs]
    run = StepRun(Dataset(target), select_step(datasets, selection))
    _writer = run, _Shards(datasets, selection, layout)


def _write_some(shards: Sequence[int]) -> None:
    assert _writer is not None
    run, writer = _writer
    for shard in shards:
        writer.write(run.shard(shard), shard)


# What a selection needs of its inputs


def _read_groups(dataset: Dataset, selection: Selection) -> tuple[str, ...]:
    """Every group of a dataset that decides the result."""
    named = list(names_in(parse_condition(selection.where))) if selection.where else []
    numbers = dataset.shard_numbers
    resolved = [
        resolve(ShardRows(dataset, numbers[0]), name)[0]
        for name in [*named, *selection.prefer]
        if numbers and _is_group(name)
    ]
    rules = [one.group for one in (selection.captions,) if one]
    rules += [f"language.{one.group}" for one in (selection.captions,) if one and one.languages]
    hashed = selection.hash_lists or (selection.decontaminate and selection.decontaminate.lists)
    near = [selection.duplicates] if selection.duplicates else []
    compared = list(selection.decontaminate.captions) if selection.decontaminate else []
    asked = [SOURCE, IMAGES, *selection.groups, *resolved, *rules, *(["hash"] if hashed else []), *near, *compared]
    return tuple(group for group in dict.fromkeys(asked) if dataset.entries(group))


def _is_group(name: str) -> bool:
    """Whether a name of a condition is a column group's, rather than a measure made from `source`."""
    return name not in WORDS and name not in SOURCE_SCHEMA.names


def _check_groups(datasets: Sequence[Dataset], selection: Selection) -> None:
    for group in selection.groups:
        if not any(dataset.entries(group) for dataset in datasets):
            names = ", ".join(str(dataset.root) for dataset in datasets)
            raise ConfigurationError(f"None of {names} has the column group '{group}' that the selection carries.")
    needed = [threshold.group for threshold in selection.thresholds]
    needed += [selection.take.group] if selection.take else []
    for group in needed:
        for dataset in datasets:
            if dataset.entries(IMAGES) and not dataset.entries(group):
                raise ConfigurationError(
                    f"{dataset.root} has images but no column group '{group}' for the threshold; "
                    "run the step that writes it first."
                )
