"""A row as a reader finds it, and how the fields that a catalogue entry names are found in it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import HarmonError
from pipelines.layouts import Names
from pipelines.settings import nearest

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Native:
    """One row: its record, and the bytes of its image where it has one."""

    name: str
    """file#number or file#member: what the row is called where no field names it."""
    record: Record
    images: int = 0
    """Images that the row names."""
    image: bytes | None = None
    """Bytes of the first of them, as they came."""
    problem: tuple[str, str] | None = None
    """Why the row gives no sample (reason, detail), where that is known already."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A row as an index lists it."""

    cursor: int
    """Where its reader goes on from: a byte offset or a number, whatever is cheap for the layout."""
    row_id: str | None
    """What a field names it, where one does."""


class Reader(Protocol):
    """Reads one layout. Memory is bounded by a row and a few MiB, whatever the size of the files."""

    files: tuple[str, ...]
    """What is read, in order: names relative to the dataset's folder."""

    def index(self, file: str) -> Iterator[Mark]:
        """Every row of `file` in order, without its image.

        Raises HarmonError where the file is damaged, or has nothing where the entry expects a field.
        """
        ...

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        """`count` rows of `file` from the one at `cursor` on, which is its row number `first`."""
        ...


def value_of(record: Record, names: Names) -> Any:
    """The first value among the fields of these names; None and a text without a letter are none."""
    return found_in(record, names)[1]


def found_in(record: Record, names: Names) -> tuple[str, Any]:
    """That value with the name of its field; ("", None) where there is none."""
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return name, value
    return "", None


def has(record: Record, names: Names) -> bool:
    """Whether a record has one of the names, with or without a value."""
    for name in names:
        value: Any = record
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        else:
            return True
    return False


def text_of(record: Record, names: Names) -> str | None:
    """A value as text: a string, or a whole number spelled out. Raises TypeError for anything else."""
    value = value_of(record, names)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{' or '.join(names)} is {type(value).__name__}, not text")


def wrong_guess(where: Path | str, field: str, names: Iterable[str], has_names: Iterable[str]) -> HarmonError:
    """The error for a file that has nothing where the entry expects `field` (a field's name, or `gates.0.field`)."""
    names, there = list(names), sorted(set(has_names))
    hint = nearest(names[0], there) if there else "it has none"
    key = field if field.startswith("gates.") else f"fields.{field}"
    return HarmonError(
        f"{where} has no field {' or '.join(names)}, where the catalogue entry expects the {field} of a row ({hint}). "
        f"If the publisher has renamed it, give its name with --set layouts.0.{key}=[NAME]"
    )


class Presence:
    """Watches whether the rows of a file have the fields that the entry names: one that no row has is a wrong
    guess of the entry, and never a reason to drop every row."""

    def __init__(self, where: str, named: Mapping[str, Names]) -> None:
        self._where = where
        self._missing = dict(named)
        self._seen: set[str] = set()
        self._rows = 0

    def look(self, record: Record) -> None:
        """Take note of one row."""
        self._rows += 1
        if self._rows <= 100:
            self._seen.update(map(str, record))
        if self._missing:
            self._missing = {field: names for field, names in self._missing.items() if not has(record, names)}

    @property
    def complete(self) -> bool:
        """Whether every field has been seen."""
        return not self._missing

    def check(self) -> None:
        """Raises HarmonError where a field was in no row."""
        for field, names in self._missing.items():
            if self._rows:
                raise wrong_guess(self._where, field, names, self._seen)


def named(file: str, number: int | str) -> str:
    """file#number, file#member."""
    return f"{file}#{number}"
