"""A list of links: the Parquet file that a download reads, a few thousand rows at a time, whatever its size."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.columns import LIST_SCHEMA, MD5, MD5_FIELD
from pipelines.errors import HarmonError

LIST_COLUMNS = tuple(LIST_SCHEMA.names)
BATCH = 8192  # rows read at a time
BUFFER = 1 << 20  # bytes of a column read at a time


def list_sha256(links: Path) -> str:
    """The checksum by which a step knows its list: of the rows' values, so that a list written anew by another version
    of a writer is the same list.

    Raises HarmonError where there is no such file, or it is no list.
    """
    with _opened(links) as file:
        checked = MD5 in file.schema_arrow.names
    columns = {field.name: _Digest(field.type) for field in (*LIST_SCHEMA, *([MD5_FIELD] if checked else []))}
    for table in read_list(links):
        for name, digest in columns.items():
            for chunk in table.column(name).chunks:
                digest.update(chunk)
    return hashlib.sha256("".join(f"{name} {one.text()}\n" for name, one in columns.items()).encode()).hexdigest()


def rows_of(links: Path) -> int:
    """How many rows the list has, one at least. Raises HarmonError as `list_sha256` does."""
    with _opened(links) as file:
        return int(file.metadata.num_rows)


def read_list(links: Path) -> Iterator[pa.Table]:
    """The rows in tables of LIST_SCHEMA and MD5, which is null where the list has none. Raises HarmonError as
    `list_sha256` does.
    """
    schema = LIST_SCHEMA.append(MD5_FIELD)
    with _opened(links) as file:
        wanted = [name for name in schema.names if name in file.schema_arrow.names]
        try:
            for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
                table = pa.Table.from_batches([batch])
                if MD5 not in wanted:
                    table = table.append_column(MD5_FIELD, pa.nulls(table.num_rows, pa.string()))
                if table.column("row_id").null_count:
                    raise HarmonError(f"the list {links} has rows without row_id; every row of a list needs one")
                yield pa.table([_typed(table.column(one.name), one, links) for one in schema], schema=schema)
        except (pa.ArrowException, OSError) as error:
            raise HarmonError(f"{links} cannot be read to its end: {error}; write it anew") from None


def listed(links: Path) -> Iterator[pa.Table]:
    """The rows, with a column `again` that is true where an earlier row has the row_id."""
    doubtful = _repeated(links)
    seen: set[str] = set()
    for table in read_list(links):
        again = np.isin(_hashes(table), doubtful)
        for place in np.flatnonzero(again):
            row_id = table.column("row_id")[int(place)].as_py()
            again[place] = row_id in seen
            seen.add(row_id)
        yield table.append_column("again", pa.array(again))


def cut(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows, the last with those that are left."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held >= rows:
            whole = pa.concat_tables(waiting)
            ends = range(rows, held + 1, rows)
            yield from (whole.slice(end - rows, rows) for end in ends)
            waiting, held = [whole.slice(ends[-1])], held - ends[-1]
    if held:
        yield pa.concat_tables(waiting)


def _repeated(links: Path) -> NDArray[np.uint64]:
    """Hashes that several rows' ids have: 8 bytes a row while they are sorted out, and none afterwards."""
    hashes = np.concatenate([_hashes(table) for table in read_list(links)])
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _hashes(table: pa.Table) -> NDArray[np.uint64]:
    """64 bits of each row_id's BLAKE2: equal for equal ids, and hardly ever for others."""
    ids = table.column("row_id").to_pylist()
    data = b"".join(hashlib.blake2b(row_id.encode(), digest_size=8).digest() for row_id in ids)
    return np.frombuffer(data, np.uint64)


class _Digest:
    """SHA-256 of a column's values, however they are cut into chunks: which are null, how long each is, its bytes."""

    def __init__(self, kind: pa.DataType) -> None:
        self._nulls, self._lengths, self._bytes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        inner = [kind.value_type.field(n) for n in range(kind.value_type.num_fields)] if pa.types.is_list(kind) else []
        self._parts = {field.name: _Digest(field.type) for field in inner}

    def update(self, values: pa.Array) -> None:
        """The next values: texts, or lists of mappings of texts."""
        self._nulls.update(values.is_null().to_numpy(zero_copy_only=False).tobytes())
        lengths = pc.list_value_length(values) if self._parts else pc.binary_length(values)
        self._lengths.update(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        if not self._parts:
            self._bytes.update(b"".join(map(str.encode, filter(None, values.to_pylist()))))
            return
        items = values.flatten()  # of null lists nothing
        self._bytes.update(items.is_null().to_numpy(zero_copy_only=False).tobytes())
        for name, part in self._parts.items():
            part.update(pc.struct_field(items, name))

    def text(self) -> str:
        """The digest so far."""
        own = " ".join(one.hexdigest() for one in (self._nulls, self._lengths, self._bytes))
        return own + "".join(f" {name} ({part.text()})" for name, part in self._parts.items())


def _opened(links: Path) -> pq.ParquetFile:
    """The file, if its head is that of a list."""
    if not links.is_file():
        raise HarmonError(f"the list of links {links} does not exist; publish or name it first")
    try:
        file = pq.ParquetFile(links, memory_map=False, pre_buffer=False, buffer_size=BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise HarmonError(f"{links} is no Parquet file with the columns {', '.join(LIST_COLUMNS)}: {error}") from None
    missing = [name for name in LIST_COLUMNS if name not in file.schema_arrow.names]
    if missing or not file.metadata.num_rows:
        file.close()
        what = f"none of the columns {', '.join(missing)}" if missing else "no rows"
        raise HarmonError(
            f"the list {links} has {what}; it needs the columns {', '.join(LIST_COLUMNS)} and a row or more"
        )
    return file


def _typed(column: pa.ChunkedArray, field: pa.Field, links: Path) -> pa.ChunkedArray:
    """A column of the list as `field` says, its text checked to be UTF-8, which reading does not do."""
    try:
        typed = column.cast(field.type)
        typed.validate(full=True)
    except pa.ArrowException as error:
        raise HarmonError(
            f"the column {field.name} of the list {links} is {column.type}, which does not become {field.type} "
            f"({error}); write that column anew"
        ) from None
    return typed
