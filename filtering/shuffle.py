"""An external shuffle: rows go into partitions by their random place, and come back in its order.

A partition that grew past its bound is split again by the next bits of the place, as often as it takes, so the number
and the width of the rows do not matter.

Memory: what waits to be written (WAITING bytes, and as much again while it is sorted) and, when read, two partitions of
about PARTITION bytes. Disk: each row once, compressed, and a partition twice while it is split. The pictures never go
through it: a row carries where its picture lies.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.disk import make_folder

WAITING = 32 << 20  # bytes of rows that are gathered before they are sorted into partitions
PARTITION = 32 << 20  # bytes of rows that a partition should have in memory
TOLERATED = 2  # times PARTITION, from which on a partition is split: random places make them uneven
MOST_BITS = 8  # of the place at a time: 256 partitions, each an open file while rows are written
PLACE, ROW = "place", "row"
"""Columns by which a partition is sorted: the random place, and the number of the row among all inputs."""

Places = NDArray[np.uint64]


def places_of(keys: Iterable[str], seed: int) -> Places:
    """Where each row stands in the shuffled order: the first eight bytes of sha256(seed, key)."""
    return _drawn(keys, f"{seed}\n")


def ties_of(keys: Iterable[str], seed: int) -> Places:
    """The order among equal scores. A draw of its own: ties broken by place would crowd their winners into the first
    shards."""
    return _drawn(keys, f"tie\n{seed}\n")


def _drawn(keys: Iterable[str], before: str) -> Places:
    start = hashlib.sha256(before.encode())
    digests = []
    for key in keys:
        one = start.copy()
        one.update(key.encode())
        digests.append(one.digest()[:8])
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


class Partition(NamedTuple):
    """A finished file of rows whose places lie between those of its neighbours."""

    file: str
    rows: int


class Writer:
    """Writes tables with the columns `place` (uint64) and `row` (int64) into the partitions of a folder.

    The folder is good for reading once `close` has written its list of partitions, which comes last.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """`rows`: how many will come, from which with the first rows' size the number of partitions follows."""
        self._folder = folder
        self._rows = rows
        self._level: _Level | None = None
        self._waiting: list[pa.Table] = []
        self._held = 0
        make_folder(folder)

    def add(self, table: pa.Table) -> None:
        """More rows, in any order."""
        self._waiting.append(table)
        self._held += table.nbytes
        if self._held >= WAITING:
            self._sort_in()

    def close(self) -> None:
        """Write what waits, split what became too large, and list the partitions once all of them are on the disk."""
        self._sort_in()
        parts = list(self._level.finished()) if self._level else []
        for part in parts:
            sync(self._folder / part.file)
        partial = self._folder / "parts.part"
        partial.write_text(json.dumps(parts))
        sync(partial)
        partial.replace(_list(self._folder))
        sync(self._folder)

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        if self._level is None:
            self._level = _Level(self._folder, "", 0, _bits(self._held / table.num_rows * self._rows))
        self._waiting, self._held = [], 0
        self._level.add(table)


class _Level:
    """The partitions by some bits of the place: of all rows, or of one partition that grew too large."""

    def __init__(self, folder: Path, name: str, skipped: int, bits: int) -> None:
        """`name`: what the partitions' names begin with; `skipped`: leading bits of the place that they share."""
        self._folder = folder
        self._name = name
        self._skipped = skipped
        self._bits = bits
        self._rows = [0] * (1 << bits)
        self._bytes = [0] * (1 << bits)
        self._sinks: dict[int, pa.RecordBatchFileWriter] = {}

    def add(self, table: pa.Table) -> None:
        which = partition_of(table.column(PLACE).to_numpy(), self._bits, self._skipped)
        order = np.argsort(which, kind="stable")
        ends = np.searchsorted(which[order], np.arange(len(self._rows)), side="right")
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                some = table.take(order[begin:end]).combine_chunks()
                self._sink(number, table.schema).write_table(some)
                self._rows[number] += end - begin
                self._bytes[number] += some.nbytes
            begin = end

    def finished(self) -> Iterator[Partition]:
        """Every partition with rows, in the order of their places, none much larger than its bound."""
        for sink in self._sinks.values():
            sink.close()
        skipped = self._skipped + self._bits
        for number, rows in enumerate(self._rows):
            name = f"{self._name}{number:03d}"
            if self._bytes[number] > TOLERATED * PARTITION and skipped < 64:
                yield from self._split(name, skipped, min(_bits(self._bytes[number]), 64 - skipped))
            elif rows:
                yield Partition(f"{name}.arrow", rows)

    def _split(self, name: str, skipped: int, bits: int) -> Iterator[Partition]:
        file, finer = self._folder / f"{name}.arrow", _Level(self._folder, f"{name}-", skipped, bits)
        with pa.OSFile(str(file)) as source:
            batches = pa.ipc.open_file(source)
            for number in range(batches.num_record_batches):
                finer.add(pa.Table.from_batches([batches.get_batch(number)]))
        file.unlink()
        yield from finer.finished()

    def _sink(self, number: int, schema: pa.Schema) -> pa.RecordBatchFileWriter:
        if number not in self._sinks:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            file = self._folder / f"{self._name}{number:03d}.arrow"
            self._sinks[number] = pa.ipc.new_file(str(file), schema, options=options)
        return self._sinks[number]


class Reader:
    """Reads the rows back in the order of (place, row)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = [Partition(*one) for one in json.loads(_list(folder).read_text())]
        self._ends = np.cumsum([part.rows for part in self._parts], dtype=np.int64)
        self._partition = lru_cache(maxsize=2)(self._sorted)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def rows(self, start: int, stop: int) -> pa.Table | None:
        """Rows `start` to `stop` of the shuffled order; None for none of them."""
        parts = list(self._slices(start, min(stop, len(self))))
        return pa.concat_tables(parts).combine_chunks() if parts else None

    def _slices(self, start: int, stop: int) -> Iterator[pa.Table]:
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[number])
            begin = end - self._parts[number].rows
            yield self._partition(number).slice(start - begin, min(stop, end) - start)
            start, number = end, number + 1

    def _sorted(self, number: int) -> pa.Table:
        with pa.OSFile(str(self._folder / self._parts[number].file)) as source:
            table = pa.ipc.open_file(source).read_all().combine_chunks()
        order = np.lexsort((table.column(ROW).to_numpy(), table.column(PLACE).to_numpy()))
        return table.take(order).combine_chunks()


def is_written(folder: Path) -> bool:
    """Whether a writer has closed this folder."""
    return _list(folder).exists()


def partition_of(places: Places, bits: int, skipped: int = 0) -> NDArray[np.int64]:
    """The partition of each place: its `bits` bits behind the first `skipped` ones."""
    if not bits:
        return np.zeros(len(places), np.int64)
    return (places << np.uint64(skipped) >> np.uint64(64 - bits)).astype(np.int64)


def _bits(total: float) -> int:
    """How many bits part `total` bytes into partitions of the wanted size."""
    return max(0, min(MOST_BITS, int(np.ceil(np.log2(max(1.0, total / PARTITION))))))


def _list(folder: Path) -> Path:
    return folder / "parts.json"


def sync(path: Path) -> None:
    """What was written stands after a power cut, too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
