"""Captions that stand already, found by the work that made them: nothing is asked twice."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.dataset import Dataset

CAPTIONS = "caption."  # how the names of caption groups begin
_TABLES = 4  # kept in memory: works that are asked about together mostly stand together
_COLUMNS = ["work", "text", "finish_reason", "tokens_in", "tokens_out", "draw", "drawn"]


@dataclass(frozen=True)
class Known:
    """A caption that stands, and where."""

    text: str
    finish_reason: str
    tokens_in: int | None
    tokens_out: int | None
    draw: int
    drawn: str | None
    """How a later draw than the first was sampled (`Asking.drawn`)."""
    dataset: str
    content_hash: str
    group: str


@dataclass(frozen=True)
class _Place:
    dataset: Dataset
    content_hash: str
    group: str
    shard: int


class KnownCaptions:
    """The captions of every caption group of some datasets, by work. Takes 16 bytes of memory a caption."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._places: list[_Place] = []
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        starts, rows = [], []
        for dataset in datasets:
            content_hash = dataset.head.content_hash if dataset.head else ""
            for group in _reusable_groups(dataset):
                for entry in dataset.entries(group):
                    table = dataset.table(group, entry.shard, ["work", "status"])
                    works, states = (table.column(name).to_pylist() for name in ("work", "status"))
                    there = [row for row, state in enumerate(states) if state == "ok" and works[row]]
                    starts.append(np.array([int(works[row][:16], 16) for row in there], np.uint64))
                    rows.append(np.array(there, np.uint64) | np.uint64(len(self._places) << 32))
                    self._places.append(_Place(dataset, content_hash, group, entry.shard))
        start = np.concatenate(starts) if starts else np.empty(0, np.uint64)
        order = np.argsort(start, kind="stable")  # the first dataset named comes first
        self._starts = start[order]
        self._rows = (np.concatenate(rows) if rows else np.empty(0, np.uint64))[order]

    def __len__(self) -> int:
        return len(self._starts)

    def find(self, works: Iterable[str], stands: Callable[[str, Known], bool]) -> dict[str, Known]:
        """Those of `works` that have a caption which stands."""
        wanted = list(works)
        at = np.searchsorted(self._starts, np.array([int(work[:16], 16) for work in wanted], np.uint64))
        candidates: list[tuple[int, int, str]] = []
        for work, first in zip(wanted, at.tolist(), strict=True):
            start = int(work[:16], 16)
            for position in range(first, len(self._starts)):
                if int(self._starts[position]) != start:
                    break
                row = int(self._rows[position])
                candidates.append((row >> 32, row & 0xFFFFFFFF, work))
        found: dict[str, Known] = {}
        for place, row, work in sorted(candidates):
            if work not in found and (known := self._read(place, row, work)) and stands(work, known):
                found[work] = known
        return found

    def _read(self, place: int, row: int, work: str) -> Known | None:
        """The caption at this row, if it is of this work and not of one that only begins alike."""
        said = self._table(place).slice(row, 1).to_pylist()[0]
        if said.pop("work") != work:
            return None
        where = self._places[place]
        return Known(**said, dataset=where.dataset.name, content_hash=where.content_hash, group=where.group)

    def _table(self, place: int) -> pa.Table:
        if place not in self._tables:
            where = self._places[place]
            self._tables[place] = where.dataset.table(where.group, where.shard, _COLUMNS)
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(place)
        return self._tables[place]


def consulted(datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """What is looked through for captions that stand: each dataset at its commit, each caption group by its hash."""
    told: list[dict[str, Any]] = []
    for dataset in datasets:
        groups = {group: dataset.group_hash(group) for group in _reusable_groups(dataset)}
        if (head := dataset.head) and groups:
            told.append(
                {"dataset": dataset.name, "commit": head.number, "content_hash": head.content_hash, "groups": groups}
            )
    return told


def _reusable_groups(dataset: Dataset) -> list[str]:
    """Caption groups that say of each text which draw it is."""
    head = dataset.head
    return [group for group in caption_groups(dataset) if head and "draw" in head.schemas[group]]


def caption_groups(dataset: Dataset) -> Iterator[str]:
    """Names of the caption groups whose rows say which work made them."""
    head = dataset.head
    for group in dataset.groups():
        if head and group.startswith(CAPTIONS) and {"work", "text", "status"} <= set(head.schemas.get(group, {})):
            yield group
