"""The rows of one shard as rules see them: any column of any group, read when it is first asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.columns import read_columns
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, SOURCE, Commit, FileEntry

TOGETHER = ("key", "source", "task", "width", "height", "sha256")
"""Columns of `source` that every selection reads: opening a file for each would cost more than reading them."""

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Drop:
    """Why a row leaves: a one-word reason that is counted, and what was measured, for a person."""

    reason: str
    detail: str


class ShardRows:
    """Columns of one shard. Only the columns that are asked for are read, each once."""

    def __init__(self, dataset: Dataset, shard: int, head: Commit | None = None) -> None:
        """`head`: the commit to read, where the caller has looked it up once for many shards."""
        self.dataset = dataset
        self.shard = shard
        found = head or dataset.head
        if found is None:
            raise HarmonError(f"the dataset {dataset.root} has no commit yet; run the step that writes it first")
        self.head: Commit = found
        self._columns: dict[tuple[str, str], pa.ChunkedArray] = {}
        self._length = self._entry(SOURCE).rows

    def __len__(self) -> int:
        return self._length

    def has(self, group: str) -> bool:
        """Whether the shard has this column group."""
        return (group, self.shard) in self.head.by_place

    def _entry(self, group: str) -> FileEntry:
        try:
            return self.head.by_place[group, self.shard]
        except KeyError:
            raise ConfigurationError(f"Shard {self.shard} of {self.dataset.root} has no group '{group}'.") from None

    def column(self, group: str, name: str) -> pa.ChunkedArray:
        """One column, in shard order.

        Raises ConfigurationError where the dataset has no such group or the group no such column.
        """
        found = self._columns.get((group, name))
        if found is None:
            known = sorted(self.head.schemas.get(group, {}))
            if name not in known:
                raise ConfigurationError(
                    f"There is no column '{name}' in the group '{group}' of {self.dataset.root}; it has "
                    f"{', '.join(known) or 'no such group'}."
                )
            together = [one for one in TOGETHER if one in known] if group == SOURCE and name in TOGETHER else [name]
            entry = self._entry(group)
            table = read_columns(self.dataset.store.readable(entry.path), together)
            if table.num_rows != self._length:
                where = self.dataset.store.where(entry.path)
                raise HarmonError(f"{where} has {table.num_rows} rows, not {self._length}; run `harmon audit`")
            self._columns |= {(group, one): table.column(one) for one in together}
            found = self._columns[group, name]
        return found

    def values(self, group: str, name: str) -> list[Any]:
        """One column as Python values."""
        found: list[Any] = self.column(group, name).to_pylist()
        return found

    def numbers(self, group: str, name: str) -> Numbers:
        """A numeric column as float64 [rows], NaN for null."""
        return _floats(self.column(group, name), f"{group}.{name}")

    def lengths(self, group: str, name: str) -> Numbers:
        """Characters of each text [rows], 0 for null."""
        return _floats(pc.fill_null(pc.utf8_length(self.column(group, name)), 0), name)

    @cached_property
    def pictures(self) -> Mask:
        """Rows that have an image: those whose task is not text."""
        mask: Mask = np.asarray(pc.not_equal(self.column(SOURCE, "task"), "text"), dtype=bool)
        return mask

    def of(self, sources: Sequence[str]) -> Mask:
        """Rows of these sources."""
        found = pc.is_in(self.column(SOURCE, "source"), pa.array(sources, pa.string()))
        return np.asarray(found, dtype=bool)

    def rounding(self, group: str, name: str) -> Callable[[float], float]:
        """How a number is rounded to what the column can hold: as its floats are, not at all for integers."""
        kind = self.column(group, name).type
        if not pa.types.is_floating(kind):
            return float
        return lambda number: float(np.dtype(kind.to_pandas_dtype()).type(number))

    def members(self) -> NDArray[np.int64]:
        """Position of each row's image among the members of the tar [rows], -1 for a row without one."""
        places = np.full(len(self), -1, np.int64)
        if not self.has(IMAGES):
            return places
        pictures, images = self.pictures, self.dataset.images(self.shard)
        if len(images) == int(pictures.sum()):
            places[pictures] = np.arange(len(images))
        else:
            known = {key: number for number, key in enumerate(images.keys())}
            places[:] = [known.get(key, -1) for key in self.values(SOURCE, "key")]
        images.close()
        return places


def shards_of(datasets: Sequence[Dataset]) -> Iterator[tuple[int, ShardRows]]:
    """Every shard with the number of its dataset, in the order dataset, shard."""
    for number, dataset in enumerate(datasets):
        head = dataset.head
        for entry in sorted(
            (one for one in head.files if one.group == SOURCE) if head else (), key=lambda one: one.shard
        ):
            yield number, ShardRows(dataset, entry.shard, head)


def sources_of(dataset: Dataset) -> set[str]:
    """Names of the sources that a dataset's rows come from."""
    found: set[str] = set()
    for shard in dataset.shard_numbers:
        found |= set(pc.unique(dataset.table(SOURCE, shard, ["source"]).column(0)).to_pylist())
    return found


def _floats(column: pa.ChunkedArray, name: str) -> Numbers:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise ConfigurationError(f"The column '{name}' holds {column.type}, not numbers.")
    found: Numbers = column.cast(pa.float64()).to_numpy()
    return found.astype(np.float64)  # a null is NaN
