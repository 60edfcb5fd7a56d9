"""Parquet files with pictures, in the forms of the Hugging Face hub: struct{bytes, path}, a list of them, plain binary.

The columns of texts are read in small batches; of pictures only whether there is one. Their bytes are read later, a
column at a time and forwards, so that a pass over all pictures decodes each page once. A page is decoded whole, as
Parquet has it: memory is a few times the largest page, which is 100 pictures where the hub's library wrote it.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harmon.evaluation.files.found import OTHER, Record
from harmon.evaluation.files.images import MAX_PICTURE
from pipelines.errors import HarmonError

TEXTS, PICTURES = 512, 8  # rows decoded at a time
BUFFER = 1 << 20  # bytes of a column that are read ahead; without it pyarrow takes whole row groups
OPEN_COLUMNS = 16
_reading = threading.Lock()


@dataclass(frozen=True)
class ParquetPicture:
    """A picture in one cell of a Parquet file."""

    where: str
    path: Path
    column: str
    row: int
    """From 0."""
    index: int = 0
    """Of a cell that holds a list."""

    def read(self) -> bytes:
        with _reading:  # a column's cursor is shared by the threads of a process
            try:
                cell = _column(self.path, self.column).cell(self.row)
            except (pa.ArrowException, OSError, IndexError) as error:
                raise _damaged(self.path, error) from None
        value = cell[self.index] if isinstance(cell, list) and self.index < len(cell) else cell
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            raise HarmonError(f"{self.where}: the field {self.column!r} has no bytes of a picture; fetch it anew.")
        if len(data) > MAX_PICTURE:
            raise HarmonError(f"{self.where}: a picture of {len(data):,} bytes, more than any benchmark has.")
        return data


@dataclass(frozen=True)
class ParquetRow(Record):
    """A row of a Parquet file: `values` holds its texts, numbers and lists."""

    pictures: dict[str, tuple[ParquetPicture, ...]]
    """Column to its pictures: none where the cell is null."""

    def picture(self, column: str = "image") -> ParquetPicture:
        """The one picture of a column. Raises HarmonError where there is none, or several."""
        found = self.pictures[column]
        if len(found) != 1:
            raise self.wrong(column, f"{len(found)} pictures, where one is read")
        return found[0]


def read_parquet(
    paths: Sequence[Path], columns: Sequence[str], pictures: Sequence[str] = ("image",), optional: Sequence[str] = ()
) -> Iterator[ParquetRow]:
    """The rows of files in order, with `columns`, and those of `optional` that there are.

    Raises HarmonError where a file lacks a column, has no pictures in one, or cannot be read.
    """
    for path in paths:
        try:
            with pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=BUFFER) as parquet:
                schema = parquet.schema_arrow
                _check(path, schema, columns, pictures)
                wanted = [*columns, *(name for name in optional if name in schema.names)]
                seen = {name: _presence(parquet, name) for name in pictures}
                row = 0
                leaves = [leaf for leaf in seen.values() if leaf]
                for batch in parquet.iter_batches(TEXTS, columns=[*wanted, *leaves], use_threads=False):
                    for values in batch.to_pylist():
                        where = f"{path}, row {row + 1}"
                        found = {
                            name: _pictures(where, path, name, row, values.get(name) if leaf else b"")
                            for name, leaf in seen.items()
                        }
                        yield ParquetRow(where, {name: values[name] for name in wanted}, found)
                        row += 1
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> HarmonError:
    return HarmonError(f"{path} cannot be read as Parquet ({error}); fetch that file anew.")


def _pictures(where: str, path: Path, column: str, row: int, seen: Any) -> tuple[ParquetPicture, ...]:
    many = 0 if seen is None else len(seen) if isinstance(seen, list) else 1
    return tuple(ParquetPicture(where, path, column, row, index) for index in range(many))


def _check(path: Path, schema: pa.Schema, columns: Sequence[str], pictures: Sequence[str]) -> None:
    missing = [name for name in (*columns, *pictures) if name not in schema.names]
    if missing:
        raise HarmonError(
            f"{path} has no column {', '.join(map(repr, missing))}, but {', '.join(schema.names)[:300]}; {OTHER}."
        )
    for name in pictures:
        if not _is_picture(schema.field(name).type):
            raise HarmonError(
                f"{path}: the column {name!r} is {schema.field(name).type}, and no bytes of pictures; {OTHER}."
            )


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_picture(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0) and _is_picture(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _presence(parquet: pq.ParquetFile, name: str) -> str:
    """The small column that tells where a column has pictures; empty where only the pictures themselves do."""
    leaves = [parquet.schema.column(place).path for place in range(len(parquet.schema))]
    return next((leaf for leaf in leaves if leaf.startswith(f"{name}.") and leaf.endswith(".path")), "")


class _Column:
    """A column of pictures, read forwards in small batches; going back, or far on, begins at a row group anew."""

    def __init__(self, path: Path, name: str) -> None:
        self._parquet = pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=BUFFER)
        self._name = name
        metadata = self._parquet.metadata
        self._groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._group = -1
        self._first = 0  # row of the first cell of the batch
        self._batch: Any = []
        self._batches: Iterator[Any] = iter(())

    def cell(self, row: int) -> Any:
        """The value of one cell."""
        group, first = self._of(row)
        if group != self._group or row < self._first:
            self._group, self._first, self._batch = group, first, []
            self._batches = self._parquet.iter_batches(PICTURES, [group], [self._name], use_threads=False)
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches).column(0)
        return self._batch[row - self._first].as_py()

    def _of(self, row: int) -> tuple[int, int]:
        """The row group of a row, and that group's first row."""
        first = 0
        for group, rows in enumerate(self._groups):
            if row < first + rows:
                return group, first
            first += rows
        raise IndexError(f"there is no row {row + 1}")


@lru_cache(maxsize=OPEN_COLUMNS)
def _column(path: Path, name: str) -> _Column:
    return _Column(path, name)
