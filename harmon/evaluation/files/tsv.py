"""Tables of tab-separated values with pictures in base64, as OpenCompass publishes them: hundreds of megabytes.

A table is read once, row by row, and of its pictures only their places are kept. A quoted cell may hold tabs and line
breaks, as pandas writes them.
"""

import binascii
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harmon.evaluation.files.found import OTHER, Record
from pipelines.errors import HarmonError

MAX_CELL = 64 << 20  # bytes of one cell: 48 MiB of picture; the largest published picture has 5
MAX_ROW = MAX_CELL + (1 << 20)
REFERENCE = 64  # a cell of at most so many characters names the row that has the picture (VLMEvalKit image_base.py)


@dataclass(frozen=True)
class TablePicture:
    """A picture in base64 in one cell of a table."""

    where: str
    path: Path
    offset: int
    """Of its row's first byte, and below its row's length in bytes."""
    size: int
    column: int

    def read(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            text = stream.read(self.size).decode("utf-8", errors="replace")
        try:
            cell = next(_reader(io.StringIO(text, newline="")))[self.column]
            data = binascii.a2b_base64("".join(cell.split()), strict_mode=True)
        except (csv.Error, StopIteration, IndexError, ValueError) as error:
            raise HarmonError(f"{self.where}: its picture is not base64 ({error}); fetch that file anew.") from None
        if not data:
            raise HarmonError(f"{self.where} has no picture; fetch that file anew.")
        return data


@dataclass(frozen=True)
class TableRow(Record):
    """A row of a table: `values` holds every cell but the picture's."""

    picture: TablePicture
    same_as: str
    """The index of the row whose picture this one has, too; empty where it has its own."""


def read_table(path: Path, columns: Sequence[str], picture: str = "image") -> Iterator[TableRow]:
    """The rows of a table in order. Raises HarmonError where it lacks one of `columns`, or is damaged."""
    with path.open("rb") as stream:
        lines = _Lines(stream, path)
        rows = _reader(lines)
        head = _next(rows, lines) or []
        if len(set(head)) != len(head):
            raise HarmonError(f"{path}: a column's name occurs twice in its first line; {OTHER}.")
        missing = [name for name in (*columns, picture) if name not in head]
        if missing:
            raise HarmonError(
                f"{path} has no column {', '.join(map(repr, missing))}, but {', '.join(head)[:300]}; {OTHER}."
            )
        column = head.index(picture)
        while True:
            lines.row += 1
            start = lines.offset
            cells = _next(rows, lines)
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(head):
                raise HarmonError(f"{lines.where} has {len(cells)} cells, not {len(head)}; fetch that file anew.")
            place = TablePicture(lines.where, path, start, lines.offset - start, column)
            short = cells[column] if len(cells[column]) <= REFERENCE else ""
            if len(cells[column]) == 0:
                raise HarmonError(f"{lines.where}: the cell {picture!r} is empty; fetch that file anew.")
            values = {name: cell for name, cell in zip(head, cells, strict=True) if name != picture}
            yield TableRow(lines.where, values, place, short)


class _Lines:
    """The lines of a table for a csv reader, which takes one at a time: `offset` is where the next begins."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self.offset, self.row = 0, 0
        self._begun = 0

    @property
    def where(self) -> str:
        return f"{self._path}, row {self.row}"

    def begin(self) -> None:
        """A row begins here."""
        self._begun = self.offset

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.offset += len(line)
        if self.offset - self._begun > MAX_ROW:
            raise HarmonError(f"{self.where} has more than {MAX_ROW:,} bytes; fetch that file anew.")
        try:
            return line.decode("utf-8-sig" if self.offset == len(line) else "utf-8")
        except UnicodeDecodeError as error:
            raise HarmonError(f"{self.where} is not UTF-8 ({error.reason}); fetch that file anew.") from None


def _reader(lines: "io.StringIO | _Lines") -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))  # of the process, which may be a new one
    return csv.reader(lines, delimiter="\t", strict=True)  # strict: an open quote would swallow the rest of the file


def _next(rows: Iterator[list[str]], lines: _Lines) -> list[str] | None:
    lines.begin()
    try:
        return next(rows, None)
    except csv.Error as error:
        raise HarmonError(f"{lines.where} cannot be read ({error}); fetch that file anew.") from None
