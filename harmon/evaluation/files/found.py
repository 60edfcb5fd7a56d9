"""Files of a benchmark below a folder, and the fields of one record: errors name file, row and field."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError, HarmonError

MAX_JSON = 256 << 20  # bytes of a JSON file that is read whole: GQA's largest has 11 MB
MAX_LINE = 16 << 20  # bytes of a line of JSON
SHOWN = 12  # names of fields that an error lists
OTHER = "it is another file, or another version of it"


def files_of(folder: Path, *patterns: str, named: str = "") -> list[Path]:
    """The files of the first of `patterns` that finds any below `folder`, in order of their names.

    Raises ConfigurationError where none does; `named` says what was looked for.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder; name the one that holds the benchmark's files.")
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    wanted = " nor ".join(patterns)
    raise ConfigurationError(
        f"{folder} holds no {named or 'file'} ({wanted}); docs/benchmarks-data.md says what to fetch."
    )


def file_of(folder: Path, *patterns: str, named: str = "") -> Path:
    """The one file of `files_of`. Raises ConfigurationError where there are several."""
    found = files_of(folder, *patterns, named=named)
    if len(found) > 1:
        several = ", ".join(str(path) for path in found[:4])
        raise ConfigurationError(f"{folder} holds {len(found)} files where one is read ({several}); keep one of them.")
    return found[0]


@dataclass(frozen=True)
class Record:
    """The fields of one row of a published file."""

    where: str
    """File and row."""
    values: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The text of the first of these fields that the record has, never empty."""
        value = self.value(*names)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong(names[0], f"{type(value).__name__}, where text is read")
        if not str(value).strip():
            raise self.wrong(names[0], "empty")
        return str(value)

    def optional(self, *names: str) -> str:
        """The text of the first of these fields that there is; empty where none is, or it is null or nan."""
        for name in names:
            value = self.values.get(name)
            if value is not None and not is_absent(value):
                return str(value)
        return ""

    def number(self, *names: str) -> int:
        """A whole number, written as one or as its digits."""
        value = self.value(*names)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip().isdecimal():
            raise self.wrong(names[0], f"{str(value)[:40]!r}, where a whole number is read")
        return int(value)

    def items(self, *names: str) -> list[str]:
        """A list of texts."""
        value = self.value(*names)
        if not isinstance(value, list) or not all(isinstance(one, str | int) for one in value):
            raise self.wrong(names[0], f"{str(value)[:40]!r}, where a list of texts is read")
        return [str(one) for one in value]

    def one_of(self, known: Sequence[str], *names: str) -> str:
        """A text that is one of `known`."""
        value = self.text(*names)
        if value not in known:
            raise self.wrong(names[0], f"{value[:40]!r}, which is none of {', '.join(known)}")
        return value

    def value(self, *names: str) -> Any:
        """Whatever stands in the first of these fields that the record has. Raises HarmonError where it has none."""
        for name in names:
            if name in self.values:
                return self.values[name]
        there = ", ".join(list(self.values)[:SHOWN]) or "nothing"
        raise HarmonError(f"{self.where} has no field {' nor '.join(map(repr, names))}, but {there}; {OTHER}.")

    def wrong(self, field: str, what: str) -> HarmonError:
        """The error for a field that holds something else than what this benchmark has there."""
        return HarmonError(f"{self.where}: the field {field!r} is {what}; {OTHER}.")


def is_absent(value: object) -> bool:
    """Whether a cell means that there is nothing: tables say so by null, a float that is not a number, or words."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in {"", "nan", "none"})


def read_json(path: Path) -> Any:
    """A whole JSON file. Raises HarmonError where it is none, or larger than MAX_JSON."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise HarmonError(f"{path} has {path.stat().st_size:,} bytes, more than any benchmark's; {OTHER}.")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HarmonError(f"{path} cannot be read as JSON ({error}); fetch that file anew.") from None


def json_array(path: Path, key: str | None = None) -> list[Record]:
    """The objects of a JSON array, which stands under `key` if one is named. Raises HarmonError for anything else."""
    values = read_json(path)
    if key is not None:
        values = _object(values, str(path)).value(key)
    if not isinstance(values, list):
        raise HarmonError(f"{path} holds no JSON array, but {type(values).__name__}; {OTHER}.")
    return [_object(value, f"{path}, item {number}") for number, value in enumerate(values, 1)]


def json_mapping(path: Path) -> list[tuple[str, Record]]:
    """The objects of a JSON object by their names. Raises HarmonError for anything else."""
    values = _object(read_json(path), str(path)).values
    return [(name, _object(value, f"{path}, item {name[:80]}")) for name, value in values.items()]


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a file of JSON lines; empty lines are passed over. Raises HarmonError at a line that is none."""
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE:
                raise HarmonError(f"{where} is longer than {MAX_LINE:,} bytes; {OTHER}.")
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise HarmonError(f"{where} is no JSON ({error}); fetch that file anew.") from None
            yield _object(value, where)


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise HarmonError(f"{where} is no JSON object, but {type(value).__name__}; {OTHER}.")
    return Record(where, value)
