"""Which rows of a dataset a recaptioning is about: all, or those that an earlier one left wanting."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, is_volatile
from pipelines.settings import Settings

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection  # loaded where there is a condition: it complains at the end of a flow

Only = Literal["missing", "failed", "flagged", "changed", "all"]

NOT_SELECTED = "not_selected"
UNASKED = frozenset({"not_dense", "no_caption", "no_image", NOT_SELECTED})
"""Reasons of rows that no model was asked about."""


class Rows(Settings):
    """Rows that are asked about. Every other row keeps what `base` has of it, or says `not_selected`."""

    only: Only = "missing"
    """missing: rows of which `base` has not asked; failed: those without a caption that passes today's checks,
    though a model was asked; flagged: those with a caption that fails one of them; changed: those that would be
    asked otherwise now; all: every one, asked afresh."""
    where: str | None = None
    """A condition in SQL over the columns of `source`; those of another group as "group".column."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many of them."""
    sample: float | None = Field(default=None, gt=0, le=1)
    """This share of all rows, told by their keys: always the same ones."""
    base: str | None = None
    """The caption group that stands for the other rows."""
    round: int = Field(default=0, ge=0)
    """Of `all`: how many such runs have been committed before, so that each asks afresh and a killed one goes on."""

    @property
    def ledger_round(self) -> int:
        """Whose answers this run goes on from: those of any other, or (`all`) those of its own round alone."""
        return self.round + 1 if self.only == "all" else 0


def is_sampled(key: str, share: float) -> bool:
    """Whether a row belongs to a sample of this share: a larger sample holds every smaller one."""
    return int(key[:13], 16) < share * 16**13


def wants(only: Only, work: str, before: Mapping[str, Any] | None, today: Mapping[str, Any] | None) -> bool:
    """Whether a row is asked about; `before`: its row in the base group, None without one; `today`: that row by
    today's checks."""
    if before is None or today is None or only == "all":
        return True
    if before["reason"] in UNASKED:
        return only in ("missing", "changed")
    if only == "failed":
        return bool(today["status"] == "failed")
    if only == "flagged":
        return before["status"] == "ok" and bool(today["checks"])
    return only == "changed" and before["work"] != work


class Condition:
    """An SQL condition, evaluated a shard at a time by DuckDB without access to any file."""

    def __init__(self, dataset: Dataset, where: str) -> None:
        """Raises ConfigurationError: it is no condition over the dataset's columns, or not the same each time."""
        self._dataset = dataset
        self._where = where
        groups = [g for g in dataset.groups() if g not in (SOURCE, IMAGES) and not is_volatile(g)]
        self._groups = [group for group in groups if group in where]
        self._refuse_volatile()
        if shards := dataset.shard_numbers:
            self._evaluate(shards[0], probe=True)

    def keys(self, shard: int) -> frozenset[str]:
        """Keys of the shard's rows that fulfil it; one that is neither true nor false is not fulfilled."""
        return self._evaluate(shard, probe=False)

    def _evaluate(self, shard: int, probe: bool) -> frozenset[str]:
        import duckdb

        table = self._dataset.table(SOURCE, shard)
        table = table.slice(0, 0) if probe else table
        for group in self._groups:
            rows = self._dataset.table(group, shard).combine_chunks()
            struct = pa.StructArray.from_arrays(
                [
                    pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
                    for column in rows.columns
                ],
                names=rows.column_names,
            )
            table = table.append_column(group, struct.slice(0, table.num_rows))
        try:
            with _database() as database:
                found = database.from_arrow(table).filter(self._where).select("key").fetchall()
        except duckdb.Error as problem:
            said = " ".join(str(problem).split())[:300]
            raise ConfigurationError(f"--where {self._where}: {said}") from None
        return frozenset(key for (key,) in found)

    def _refuse_volatile(self) -> None:
        """A condition with random() or now() would choose other rows after a restart."""
        with _database() as database:
            volatile = {
                name
                for (name,) in database.execute(
                    "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
                ).fetchall()
            }
            said = database.execute("SELECT json_serialize_sql(?)", [f"SELECT 1 WHERE {self._where}"]).fetchone()
        used = sorted(_names(json.loads(said[0] if said else "{}")) & volatile)
        if used:
            raise ConfigurationError(f"--where {self._where}: {used[0]} differs from run to run; leave it out.")


def _database() -> "DuckDBPyConnection":
    """A database in memory that reads no file, loads no extension and sees no variable of ours."""
    import duckdb

    closed: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "python_enable_replacements": "false",
        "threads": "1",
    }
    database = duckdb.connect(":memory:", config=closed)
    database.execute("SET lock_configuration=true")
    return database


def _names(tree: Any) -> set[str]:
    """Functions called and bare columns named in a serialised statement; current_date is spelled as a column."""
    if isinstance(tree, list):
        return {name for item in tree for name in _names(item)}
    if not isinstance(tree, dict):
        return set()
    own: set[str] = set()
    if tree.get("class") == "FUNCTION":
        own.add(str(tree["function_name"]))
    elif tree.get("class") == "COLUMN_REF" and len(tree["column_names"]) == 1:
        own.add(str(tree["column_names"][0]))
    return own | {name for item in tree.values() for name in _names(item)}
