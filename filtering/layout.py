"""All rows of a selection, laid out once in their shuffled order: what goes into which shard."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.plan import Plan, plan
from filtering.rows import Mask, ShardRows, shards_of
from filtering.selection import Selection
from filtering.shuffle import PLACE, ROW, Reader, Writer, is_written, places_of, sync
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.disk import make_folder
from pipelines.errors import HarmonError
from pipelines.manifest import SOURCE
from pipelines.ustar import BLOCK

NOTES = "notes.json"
SAMPLED = 256  # rows whose size is measured: their mean is within about 6% of that of all
TEXTS = 10_000  # rows of a shard that holds no picture
DATASET, SHARD, MEMBER = "dataset", "shard", "member"
"""Columns of a laid out row: where its picture lies."""


@dataclass(frozen=True)
class Layout:
    """How many rows there are, and which go into which shard."""

    folder: Path
    kept: int
    dropped: int
    rows_per_shard: int
    notes: Mapping[str, Any]
    """What the commit says of the plan: the cuts, and where pictures were short, by source with a quota."""

    @property
    def shards(self) -> int:
        return -(-self.kept // self.rows_per_shard)

    def kept_in(self, shard: int) -> tuple[int, int]:
        """Places of the rows of a shard."""
        return shard * self.rows_per_shard, min(self.kept, (shard + 1) * self.rows_per_shard)

    def dropped_in(self, shard: int) -> tuple[int, int]:
        """The rows that left are spread evenly, so that no shard holds all rejects."""
        return self.dropped * shard // self.shards, self.dropped * (shard + 1) // self.shards


def lay_out(datasets: Sequence[Dataset], target: Dataset, selection: Selection, folder: Path) -> Layout:
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
        make_folder(folder)
        (folder / NOTES).write_text(json.dumps({"cut": made.cut, "short": made.short}))
        sync(folder / NOTES)
        _write_rows(made, Writer(kept, made.kept), Writer(dropped, made.rows - made.kept))
    notes, stay, rows = json.loads((folder / NOTES).read_text()), Reader(kept), selection.rows_per_shard
    if selection.shard_bytes is not None:
        rows = _rows_of(datasets, selection, stay, selection.shard_bytes)
    return Layout(folder, len(stay), len(Reader(dropped)), rows, notes)


def _rows_of(datasets: Sequence[Dataset], selection: Selection, kept: Reader, shard_bytes: int) -> int:
    """Rows that make a shard of this size, by the first rows in the shuffled order: an even draw of those that stay,
    measured as they will be written, made smaller where that is asked."""
    table, total = kept.rows(0, SAMPLED), 0
    assert table is not None  # nothing is laid out without rows that stay
    for row in table.select([f"{SOURCE}/key", DATASET, SHARD, MEMBER]).to_pylist():
        if row[MEMBER] < 0:
            continue
        images = datasets[row[DATASET]].images(row[SHARD])
        image = images.read(row[MEMBER])
        images.close()
        data = image.data
        if selection.resize is not None:
            data = selection.resize.apply(data, image.extension, row[f"{SOURCE}/key"]).data
        total += sum(BLOCK + -(-size // BLOCK) * BLOCK for size in (len(data), len(json.dumps(image.view))))
    return max(1, shard_bytes * table.num_rows // total) if total else TEXTS


def _write_rows(made: Plan, kept: Writer, dropped: Writer) -> None:
    selection, schemas = made.selection, schemas_of(made.datasets, made.selection.groups)
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


def schemas_of(datasets: Sequence[Dataset], groups: Sequence[str]) -> dict[str, pa.Schema]:
    """The columns of each carried group, as the first dataset that has it says."""
    found = {}
    for group in groups:
        data = next(data for data in datasets if data.entries(group))
        found[group] = data.table(group, data.entries(group)[0].shard).schema.remove_metadata()
    return found
