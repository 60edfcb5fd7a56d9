"""Column groups: Parquet files with one row per key in shard order, written to the same bytes every time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import HarmonError

ROWS_PER_GROUP = 1 << 20  # large row groups: a shard is one, and a column of it is read in one piece

TURN = pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())])
CONVERSATIONS = pa.list_(pa.field("element", TURN))  # the name that Parquet gives list items, so that it comes back

SOURCE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("row_id", pa.string()),
        ("task", pa.string()),  # text | image2text | text2image
        ("url", pa.string()),
        ("ext", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),  # of the file as fetched
        ("licence", pa.string()),
        ("terms_class", pa.string()),
        ("caption", pa.string()),
        ("conversations", CONVERSATIONS),
        ("parent_key", pa.string()),
    ]
)

LIST_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("task", pa.string()),
        ("conversations", CONVERSATIONS),
        ("licence", pa.string()),
    ]
)
"""A list of links, which the download step reads."""
MD5 = "md5"
MD5_FIELD = pa.field(MD5, pa.string())
"""A list may have it, too: what the file behind a link must hash to, in small letters."""

REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "source", "row_id", "url", "reason", "detail")])


def conform(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """`table` with exactly the columns and types of `schema`, safely cast; HarmonError names what differs."""
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        raise HarmonError(f"{what} must have the columns {schema.names}: missing {missing}, unknown {extra}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
        raise HarmonError(f"{what} does not fit its column types: {problem}") from problem


def write_columns(table: pa.Table, path: Path) -> None:
    """Write one Parquet file, zstd, whose bytes depend on the values alone, not on chunks or metadata.

    The first column is `key`, a string without nulls. Raises HarmonError otherwise, and where `path` exists.
    """
    if not table.column_names or table.column_names[0] != "key":
        raise HarmonError(f"{path}: the first column of a group is 'key', not {table.column_names[:1]}")
    if len(set(table.column_names)) != table.num_columns:
        raise HarmonError(f"{path}: a column name occurs twice in {table.column_names}")
    if table.column("key").null_count:
        raise HarmonError(f"{path}: {table.column('key').null_count} rows have no key; every row keeps its key")
    plain = table.replace_schema_metadata(None)
    if plain.schema.field("key").type != pa.string():
        plain = plain.set_column(0, "key", plain.column("key").cast(pa.string()))
    try:
        with path.open("xb") as stream:
            pq.write_table(
                plain.combine_chunks(),
                stream,
                compression="zstd",
                row_group_size=ROWS_PER_GROUP,
                version="2.6",
            )
    except OSError as problem:
        raise HarmonError(f"{path} could not be written: {problem}") from problem


def read_columns(file: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table, or only the named columns: then only their bytes (and the footer's) are read.

    `file` is a local path, or a stream that seeks; Store.readable gives the right one.
    """
    name = file if isinstance(file, Path) else file.name
    try:
        with parquet_file(file) as parquet:
            _check_known(name, parquet, columns or ())
            return parquet.read(columns=list(columns) if columns is not None else None)
    except (pa.ArrowException, OSError) as problem:
        raise HarmonError(f"{name} cannot be read as Parquet: {problem}; run `harmon audit --deep`") from problem


def read_batches(file: Path | BinaryIO, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The named columns, at most `rows` rows at a time: a whole column of long texts is never in memory."""
    name = file if isinstance(file, Path) else file.name
    try:
        with parquet_file(file) as parquet:
            _check_known(name, parquet, columns)
            yield from parquet.iter_batches(rows, columns=list(columns))
    except (pa.ArrowException, OSError) as problem:
        raise HarmonError(f"{name} cannot be read as Parquet: {problem}; run `harmon audit --deep`") from problem


def _check_known(file: str | Path, parquet: pq.ParquetFile, columns: Sequence[str]) -> None:
    names = parquet.schema_arrow.names
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise HarmonError(f"{file} has no column {unknown}; it has {names}")


def parquet_file(file: Path | BinaryIO) -> pq.ParquetFile:
    """A Parquet file opened for reading: a map of a local one, few coalesced reads of another."""
    if isinstance(file, Path):
        return pq.ParquetFile(file, memory_map=True)
    return pq.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=True)


def read_keys(file: Path | BinaryIO) -> list[str]:
    """The ordered keys of one group file."""
    keys: list[str] = read_columns(file, ["key"]).column("key").to_pylist()
    return keys


def schema_of(schema: pa.Schema) -> dict[str, str]:
    """Column name to type, as manifests record it."""
    return {field.name: str(field.type) for field in schema}


def read_schema(path: Path) -> dict[str, str]:
    """Column name to type of a local group file, as manifests record it."""
    return schema_of(pq.read_schema(path))
