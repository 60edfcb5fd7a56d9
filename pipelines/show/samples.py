"""The samples that a page shows: chosen evenly over the whole dataset, with everything that is known of each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, SOURCE, is_volatile

PLAIN = ("string", "bool", "int8", "int16", "int32", "int64", "halffloat", "float", "double")
"""Types of the columns that are shown; lists, such as latents, are not."""


@dataclass(frozen=True)
class Sample:
    """One row: its source columns, its value in every other group, its encoded image (None: text only)."""

    key: str
    shard: int
    source: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    image: bytes | None


def places(dataset: Dataset, number: int) -> list[tuple[int, list[int]]]:
    """Shard and rows of at most `number` samples, evenly spread over the rows in order."""
    total = dataset.total_rows
    wanted = min(number, total)
    chosen = [index * total // wanted for index in range(wanted)]
    found: list[tuple[int, list[int]]] = []
    start = 0
    for shard in dataset.shard_numbers:
        end = start + dataset.rows(shard)
        if rows := [place - start for place in chosen if start <= place < end]:
            found.append((shard, rows))
        start = end
    return found


def samples(dataset: Dataset, number: int) -> Iterator[Sample]:
    """At most `number` samples, a shard at a time. Raises HarmonError where a file cannot be read."""
    for shard, rows in places(dataset, number):
        source = _rows(dataset, SOURCE, shard, rows)
        groups = {group: _rows(dataset, group, shard, rows) for group in shown_groups(dataset)}
        images = dataset.images(shard) if dataset.entry(IMAGES, shard) else None
        try:
            for index, row in enumerate(source):
                image = images.find(row["key"]) if images else None
                facts = {group: values[index] for group, values in groups.items()}
                yield Sample(row["key"], shard, row, facts, image.data if image else None)
        finally:
            if images:
                images.close()


def shown_groups(dataset: Dataset) -> list[str]:
    """Column groups beside `source` that have columns to show."""
    names = [name for name in dataset.groups() if name not in (IMAGES, SOURCE) and not is_volatile(name)]
    return [name for name in names if len(_plain(dataset, name)) > 1]


def numbers(dataset: Dataset, group: str, column: str, most: int) -> tuple[list[float], int]:
    """Finite values of a numeric column from at most about `most` rows of evenly spread shards, and the rows
    read."""
    shards = [entry for entry in dataset.entries(group) if entry.rows]
    total = sum(entry.rows for entry in shards)
    step = max(1, math.ceil(total / most)) if total else 1
    values: list[float] = []
    rows = 0
    for entry in shards[::step] if len(shards) >= step else shards[:1]:
        table = dataset.table(group, entry.shard, [column])
        rows += table.num_rows
        values += [float(value) for value in table.column(0).to_pylist() if value is not None and math.isfinite(value)]
    return values, rows


def numeric_columns(dataset: Dataset, group: str) -> list[str]:
    """Columns of a group that hold measured numbers."""
    head = dataset.head
    schema = head.schemas.get(group, {}) if head else {}
    return sorted(name for name, kind in schema.items() if kind in ("halffloat", "float", "double", "int32", "int64"))


def _plain(dataset: Dataset, group: str) -> list[str]:
    head = dataset.head
    schema = head.schemas.get(group, {}) if head else {}
    return [name for name, kind in schema.items() if kind in PLAIN]


def _rows(dataset: Dataset, group: str, shard: int, rows: Sequence[int]) -> list[dict[str, Any]]:
    columns = _plain(dataset, group)
    taken: list[dict[str, Any]] = dataset.table(group, shard, columns).take(pa.array(rows)).to_pylist()
    return taken
