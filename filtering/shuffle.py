"""An external shuffle: rows go into partitions by their random place, and come back in its order.

Memory: what waits to be written (WAITING bytes) and, when read, one or two partitions of about PARTITION bytes. Disk:
each row once, compressed. The pictures never go through it: a row carries where its picture lies.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.disk import make_folder

WAITING = 32 << 20  # bytes of rows that are gathered before they are sorted into partitions
PARTITION = 32 << 20  # bytes of rows that a partition should have in memory
MOST = 512  # partitions, each an open file while rows are written
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


class Writer:
    """Writes tables with the columns `place` (uint64) and `row` (int64) into the partitions of a folder.

    The folder is good for reading once `close` has written its counts, which comes last.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        """`rows`: how many will come, from which with the first rows' size the number of partitions follows."""
        self._folder = folder
        self._rows = rows
        self._bits: int | None = None
        self._waiting: list[pa.Table] = []
        self._held = 0
        self._counts: list[int] = []
        self._sinks: dict[int, pa.RecordBatchFileWriter] = {}
        self._schema: pa.Schema | None = None
        make_folder(folder)

    def add(self, table: pa.Table) -> None:
        """More rows, in any order."""
        self._schema = table.schema
        self._waiting.append(table)
        self._held += table.nbytes
        if self._held >= WAITING:
            self._sort_in()

    def close(self) -> None:
        """Write what waits, and the counts."""
        self._sort_in()
        for sink in self._sinks.values():
            sink.close()
        partial = self._folder / "counts.part"
        partial.write_text(json.dumps({"bits": self._bits or 0, "counts": self._counts}))
        partial.replace(self._folder / "counts.json")

    def _sort_in(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        if self._bits is None:
            wanted = self._held / table.num_rows * self._rows / PARTITION
            self._bits = max(0, min(MOST.bit_length() - 1, int(np.ceil(np.log2(max(1.0, wanted))))))
            self._counts = [0] * (1 << self._bits)
        self._waiting, self._held = [], 0
        which = partition_of(table.column(PLACE).to_numpy(), self._bits)
        order = np.argsort(which, kind="stable")
        ends = np.searchsorted(which[order], np.arange(len(self._counts)), side="right")
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                self._sink(number).write_table(table.take(order[begin:end]))
                self._counts[number] += end - begin
            begin = end

    def _sink(self, number: int) -> pa.RecordBatchFileWriter:
        if number not in self._sinks:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._sinks[number] = pa.ipc.new_file(str(_file(self._folder, number)), self._schema, options=options)
        return self._sinks[number]


class Reader:
    """Reads the rows back in the order of (place, row)."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "counts.json").read_text())
        self._folder = folder
        self._ends = np.cumsum(told["counts"]).tolist()
        self._partition = lru_cache(maxsize=2)(self._sorted)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def rows(self, start: int, stop: int) -> pa.Table | None:
        """Rows `start` to `stop` of the shuffled order; None for none of them."""
        parts = [part for part in self._slices(start, min(stop, len(self))) if part.num_rows]
        return pa.concat_tables(parts).combine_chunks() if parts else None

    def _slices(self, start: int, stop: int) -> Iterator[pa.Table]:
        begin = 0
        for number, end in enumerate(self._ends):
            if begin < stop and end > start and end > begin:
                first, last = max(start, begin), min(stop, end)
                yield self._partition(number).slice(first - begin, last - first)
            begin = end

    def _sorted(self, number: int) -> pa.Table:
        with pa.OSFile(str(_file(self._folder, number))) as source:
            table = pa.ipc.open_file(source).read_all().combine_chunks()
        order = np.lexsort((table.column(ROW).to_numpy(), table.column(PLACE).to_numpy()))
        return table.take(order).combine_chunks()


def is_written(folder: Path) -> bool:
    """Whether a writer has closed this folder."""
    return (folder / "counts.json").exists()


def partition_of(places: Places, bits: int) -> NDArray[np.int64]:
    """The partition of each place: its first `bits` bits."""
    return (places >> np.uint64(63) >> np.uint64(1) if not bits else places >> np.uint64(64 - bits)).astype(np.int64)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.arrow"
