"""Parquet files with image bytes, in the form of the Hugging Face hub: struct{bytes, path}, or plain binary.

Row groups are read in small batches. A page is decoded whole, however, as Parquet has it: memory is about three times
the largest page of a file, which is 100 images where the hub's library wrote it and 1,000 where other tools did.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import HarmonError
from pipelines.layouts import Fields, ParquetImages
from pipelines.readers.row import Mark, Native, named, text_of, wrong_guess

BATCH = 16  # rows decoded at a time: at a cap of 32 MiB an image, half a GiB at the very worst
BUFFER = 1 << 20  # bytes of a column that are read ahead; without it pyarrow takes whole row groups
LABELS = "label_names"  # where a row's list of class names is put


class ParquetImageReader:
    """Rows in file order; a cursor is a row's number."""

    def __init__(self, root: Path, files: Sequence[str], layout: ParquetImages) -> None:
        self.files = tuple(files)
        self._root = root
        self._fields = layout.fields

    def index(self, file: str) -> Iterator[Mark]:
        """Reads the column that names the rows, and no image."""
        with opened(self._root / file) as parquet:
            wanted = self._columns(file, parquet.schema_arrow, only=("row_id",))
            self._columns(file, parquet.schema_arrow)  # all of them are checked before any row is read
            if not wanted:
                yield from (Mark(number, None) for number in range(parquet.metadata.num_rows))
                return
            number = 0
            for batch in parquet.iter_batches(batch_size=4096, columns=wanted, use_threads=False):
                for record in batch.to_pylist():
                    yield Mark(number, _row_id(record, self._fields))
                    number += 1

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        """Row groups before `cursor` are not read."""
        with opened(self._root / file) as parquet:
            columns = self._columns(file, parquet.schema_arrow)
            labels = class_names(parquet.schema_arrow) if self._fields.label else {}
            if self._fields.label and not labels:
                raise HarmonError(
                    f"{self._root / file} does not say what its labels mean: its schema has no ClassLabel names; "
                    "read class folders instead, or a file that the hub's `datasets` library wrote"
                )
            number, groups = 0, list[int]()
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if not groups and number + rows <= cursor:
                    number += rows
                else:
                    groups.append(group)
            for batch in parquet.iter_batches(BATCH, groups, columns, use_threads=False) if groups else ():
                for index in range(batch.num_rows):
                    if cursor <= number < cursor + count:
                        yield self._native(file, number, batch.slice(index, 1).to_pylist()[0], labels)
                    number += 1
                if number >= cursor + count:
                    return

    def _native(self, file: str, number: int, record: dict[str, Any], labels: dict[str, list[str]]) -> Native:
        images: list[Any] = []
        for name in self._fields.image:
            value = record.pop(name, None)
            images += value if isinstance(value, list) else [value] if value is not None else []
        for name in self._fields.label:
            record[LABELS] = labels.get(name, [])
        if images and isinstance(images[0], dict):
            record[self._fields.image[0]] = {"path": images[0].get("path")}
        data = images[0].get("bytes") if images and isinstance(images[0], dict) else images[0] if images else None
        problem = None
        if images and data is None:
            path = images[0].get("path") if isinstance(images[0], dict) else None
            problem = ("image_missing", f"the row has a path and no bytes: {path}")
        return Native(named(file, number), record, len(images), data, problem)

    def _columns(self, file: str, schema: pa.Schema, only: Sequence[str] = ()) -> list[str]:
        """The columns that hold the entry's fields. Raises HarmonError where one is absent or of another type."""
        columns: list[str] = []
        for field, names in self._fields.named.items():
            if only and field not in only:
                continue
            there = [name for name in names if name.split(".")[0] in schema.names]
            if not there:
                raise wrong_guess(self._root / file, field, names, schema.names)
            for name in there:
                top = name.split(".")[0]
                if field == "image" and not _is_image(schema.field(top).type):
                    raise HarmonError(
                        f"the column {top} of {self._root / file} is {schema.field(top).type}, and no bytes of an "
                        "image; name the right column with --set layouts.0.fields.image=[NAME]"
                    )
                columns.append(name if only and "." in name else top)
        return list(dict.fromkeys(columns))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_image(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0) and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _row_id(record: dict[str, Any], fields: Fields) -> str | None:
    try:
        return text_of(record, fields.row_id)
    except TypeError:
        return None


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is read in small pieces. Raises HarmonError where it is none, or is damaged on the way."""
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=BUFFER) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise HarmonError(f"{path} cannot be read as Parquet ({error}); fetch that file anew") from None


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """For each column of class labels the names, as the hub's `datasets` library keeps them in the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(feature["names"]) for name, feature in features.items() if "names" in feature}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
