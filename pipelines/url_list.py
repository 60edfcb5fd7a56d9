"""A list of links: the Parquet file that a download reads."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.columns import LIST_SCHEMA
from pipelines.errors import HarmonError

LIST_COLUMNS = tuple(LIST_SCHEMA.names)


def list_sha256(links: Path) -> str:
    """The checksum by which a step knows its list. Raises HarmonError where there is no such file."""
    if not links.is_file():
        raise HarmonError(f"the list of links {links} does not exist; publish or name it first")
    with links.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_list(links: Path) -> pa.Table:
    """The list, with a column `again` that is true for a row whose row_id an earlier row has."""
    try:
        table = pq.read_table(links, columns=list(LIST_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise HarmonError(f"{links} is no Parquet file with the columns {', '.join(LIST_COLUMNS)}: {error}") from None
    missing = [name for name in LIST_COLUMNS if name not in table.column_names]
    if missing or not table.num_rows or table.column("row_id").null_count:
        what = f"no column {', '.join(missing)}" if missing else "no rows, or rows without row_id"
        raise HarmonError(f"the list {links} has {what}; every row of a list of links needs a row_id")
    table = pa.table([_typed(table.column(field.name), field, links) for field in LIST_SCHEMA], schema=LIST_SCHEMA)
    seen: set[str] = set()
    again = []
    for row_id in table.column("row_id").to_pylist():
        again.append(row_id in seen)
        seen.add(row_id)
    return table.append_column("again", pa.array(again))


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
