"""Tables of links: Parquet, CSV, TSV, JSON lines, or a text file of one link a line. One form of row comes out."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pipelines.errors import HarmonError
from pipelines.layouts import UrlTable
from pipelines.readers.json_stream import MAX_RECORD, read_records
from pipelines.readers.parquet_images import opened
from pipelines.readers.row import Native, Presence, Record, named, value_of, wrong_guess

BATCH = 4096  # rows of a Parquet file decoded at a time
ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".txt")


class LinkReader:
    """Rows of tables of links, in the order of files and rows."""

    def __init__(self, root: Path, files: Sequence[str], layout: UrlTable) -> None:
        self.files = tuple(files)
        self._root = root
        self._layout = layout
        gates = {f"gates.{number}.field": gate.field for number, gate in enumerate(layout.gates)}
        self._expected = {**layout.fields.named, **gates}
        if odd := [file for file in files if not file.endswith(ENDINGS)]:
            raise HarmonError(
                f"{root / odd[0]} is no table of links that can be read; it may end in {', '.join(ENDINGS)}"
            )

    def rows(self, file: str) -> Iterator[Native]:
        """Every row of `file`; its image is a link. Rows that fail a gate come with the reason `gated`.

        Raises HarmonError where the file is damaged, or has nothing where the entry expects a field.
        """
        path = self._root / file
        if path.suffix == ".parquet":
            read = self._parquet(path)
        else:
            read = {".jsonl": _json, ".txt": _text}.get(path.suffix, _separated)(path)
        presence = Presence(str(path), self._expected)
        for number, (record, problem) in enumerate(read):
            if problem is None:
                presence.look(record)
                problem = self._gated(record)
            yield Native(named(file, number), record, problem=problem)
        if path.suffix != ".parquet":
            presence.check()

    def _parquet(self, path: Path) -> Iterator[tuple[Record, tuple[str, str] | None]]:
        names = [name for names in self._layout.fields.named.values() for name in names]
        names += [name for gate in self._layout.gates for name in gate.field]
        with opened(path) as parquet:
            self._check_columns(path, parquet.schema_arrow.names)
            columns = [name for name in dict.fromkeys(names) if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(BATCH, columns=columns, use_threads=False):
                yield from ((record, None) for record in batch.to_pylist())

    def _check_columns(self, path: Path, there: Sequence[str]) -> None:
        for field, names in self._expected.items():
            if not set(names) & set(there):
                raise wrong_guess(path, field, names, there)

    def _gated(self, record: Record) -> tuple[str, str] | None:
        for gate in self._layout.gates:
            value = _number(value_of(record, gate.field))
            if value is None or not value < gate.below:
                return (
                    "gated",
                    f"{gate.field[0]} is {'absent' if value is None else f'{value:g}'}, not below {gate.below:g}",
                )
        return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _json(path: Path) -> Iterator[tuple[Record, tuple[str, str] | None]]:
    for one in read_records(path):
        yield one.value, ("bad_record", one.problem) if one.problem is not None else None


def _text(path: Path) -> Iterator[tuple[Record, tuple[str, str] | None]]:
    with path.open(encoding="utf-8", errors="surrogateescape") as stream:
        for line in _lines(stream, path):
            if link := line.strip():
                yield {"url": link}, None


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    """The lines of a text file, none of them longer than a record may be."""
    while line := stream.readline(MAX_RECORD + 1):
        if len(line) > MAX_RECORD:
            raise HarmonError(
                f"{path} has a line of more than {MAX_RECORD} characters; is it the table that it should be?"
            )
        yield line


def _separated(path: Path) -> Iterator[tuple[Record, tuple[str, str] | None]]:
    """CSV or TSV with a header; every value is text, an empty one is none."""
    csv.field_size_limit(MAX_RECORD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        table = csv.reader(_lines(stream, path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            header = next(table, [])
            for values in table:
                if not values:
                    continue
                record = {name: value or None for name, value in zip(header, values)}
                problem = None if len(values) == len(header) else f"{len(values)} values under {len(header)} names"
                yield record, ("bad_record", problem) if problem else None
        except csv.Error as error:
            raise HarmonError(f"{path}, line {table.line_num}, is no CSV: {error}; mend that line") from None
