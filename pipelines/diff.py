"""What differs between two versions of a dataset, sample by sample and column by column.

Files that both versions list with equal bytes are never opened. The rest is joined by key in DuckDB, which
spills to disk beyond its memory limit; shards are handed to it one at a time, images as the SHA-256 of their bytes.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from pipelines.captions_diff import compare_captions
from pipelines.dataset import Dataset
from pipelines.difference import ColumnChange, Difference, Example
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import IMAGES, REJECTS, SOURCE, FileEntry, is_volatile
from pipelines.past import keys_then, table_then
from pipelines.tombstones import REASON, tombstones

EXAMPLES = 5  # of each kind of difference
SHOWN = 120  # characters of a value in an example
MEMORY = "1GB"  # that DuckDB may hold before it spills


def diff(before: Dataset, after: Dataset, captions: tuple[str, str] | None = None) -> Difference:
    """Compare two versions, each a dataset at its newest commit (see `Dataset.at`).

    `captions` names the two groups whose texts are compared, one of each version; `source` stands for the
    captions that the samples came with. Left out, every caption group that only `after` has is compared with
    `source`. Telemetry is no difference.

    Raises HarmonError for a dataset without a commit, and where a file that has to be read is gone.
    """
    for dataset in (before, after):
        if dataset.head is None:
            raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    with tempfile.TemporaryDirectory(prefix="harmon-diff-") as spill:
        database = duckdb.connect(":memory:", config={"memory_limit": MEMORY, "temp_directory": spill, "threads": 1})
        try:
            return _Comparison(before, after, database).difference(captions)
        finally:
            database.close()


class _Comparison:
    """One comparison; its tables live in `database`."""

    def __init__(self, before: Dataset, after: Dataset, database: duckdb.DuckDBPyConnection) -> None:
        self.before, self.after, self.database = before, after, database

    def difference(self, captions: tuple[str, str] | None) -> Difference:
        old, new = (_groups(dataset) for dataset in (self.before, self.after))
        gone, fresh = self._keys()
        only_new = tuple(sorted(new - old))
        pairs = [captions] if captions else [(SOURCE, group) for group in only_new if group.startswith("caption.")]
        return Difference(
            before=_title(self.before),
            after=_title(self.after),
            rows_before=self.before.total_rows,
            rows_after=self.after.total_rows,
            added=fresh,
            added_examples=self._examples("new_keys"),
            removed=gone,
            removed_examples=self._removed_examples(gone),
            groups_added=only_new,
            groups_removed=tuple(sorted(old - new)),
            columns=tuple(change for group in sorted(old & new) for change in self._columns(group)),
            captions=tuple(compare_captions(self.before, self.after, pair, self.database) for pair in pairs),
        )

    def _keys(self) -> tuple[dict[str, int], int]:
        """Samples gone, by reason, and number of samples added; leaves tables `old_keys`, `new_keys`, `lost`."""
        shards = _differing(self.before, self.after, SOURCE)
        for table, dataset, numbers in (("old_source", self.before, shards[0]), ("new_source", self.after, shards[1])):
            self.database.execute(f"CREATE TABLE {table} (key VARCHAR)")
            for shard in numbers:
                self._insert(table, pa.table({"key": pa.array(keys_then(dataset, shard), pa.string())}))
        run = self.database.execute
        run("CREATE TABLE old_keys AS SELECT key FROM old_source ANTI JOIN new_source USING (key)")
        run("CREATE TABLE new_keys AS SELECT key FROM new_source ANTI JOIN old_source USING (key)")
        self._load_reasons()
        run(
            "CREATE TABLE lost AS SELECT k.key, coalesce(min(r.reason), 'unknown') AS reason "
            "FROM old_keys k LEFT JOIN reasons r USING (key) GROUP BY k.key"
        )
        counted = run("SELECT reason, count(*) FROM lost GROUP BY reason ORDER BY reason").fetchall()
        added = run("SELECT count(*) FROM new_keys").fetchall()[0][0]
        return {str(reason): int(number) for reason, number in counted}, int(added)

    def _load_reasons(self) -> None:
        """Table `reasons`: why rows left the later version, of those that the earlier one has."""
        self.database.execute("CREATE TABLE reasons (key VARCHAR, reason VARCHAR)")
        if not self.database.execute("SELECT count(*) FROM old_keys").fetchall()[0][0]:
            return
        head = self.after.head
        for entry in head.files if head else ():
            if entry.group.startswith(REJECTS):
                self._insert("reasons", table_then(self.after, entry.group, entry.shard, ["key", "reason"]))
        self.database.execute("DELETE FROM reasons WHERE key NOT IN (SELECT key FROM old_keys)")
        barred = pa.table({"key": pa.array(sorted(tombstones(self.after).keys), pa.string())})
        self.database.register("barred", barred)
        self.database.execute(f"INSERT INTO reasons SELECT key, '{REASON}' FROM barred SEMI JOIN old_keys USING (key)")
        self.database.execute(
            f"DELETE FROM reasons r WHERE reason <> '{REASON}' AND key IN "
            f"(SELECT key FROM reasons WHERE reason = '{REASON}')"
        )

    def _examples(self, table: str) -> tuple[Example, ...]:
        rows = self.database.execute(f"SELECT key FROM {table} ORDER BY key LIMIT {EXAMPLES}").fetchall()
        return tuple(Example(key) for (key,) in rows)

    def _removed_examples(self, reasons: Mapping[str, int]) -> tuple[Example, ...]:
        found: list[Example] = []
        for reason in reasons:
            rows = self.database.execute(
                f"SELECT key FROM lost WHERE reason = ? ORDER BY key LIMIT {EXAMPLES}", [reason]
            ).fetchall()
            found += [Example(key, reason=reason) for (key,) in rows]
        return tuple(found)

    def _columns(self, group: str) -> Iterator[ColumnChange]:
        """The columns of a group that differ in samples of both versions, columns of one version included."""
        if group == IMAGES:
            yield from self._images()
            return
        shards = _differing(self.before, self.after, group)
        if not (shards[0] and shards[1]):
            return
        old = self._load("old_rows", self.before, group, shards[0])
        new = self._load("new_rows", self.after, group, shards[1])
        for column in sorted((set(old) | set(new)) - {"key"}):
            left = f'o."{_quoted(column)}"' if column in old else "NULL"
            right = f'n."{_quoted(column)}"' if column in new else "NULL"
            yield from self._change(group, column, left, right, "old_rows o JOIN new_rows n USING (key)")

    def _images(self) -> Iterator[ColumnChange]:
        """The images of samples of both versions whose bytes differ, or that only one of the two has."""
        shards = _differing(self.before, self.after, IMAGES)
        old = {shard: _with_tar(self.before, shard) for shard in shards[0]}
        new = {shard: _with_tar(self.after, shard) for shard in shards[1]}
        same = {n for n in old.keys() & new.keys() if old[n].entry(IMAGES, n) == new[n].entry(IMAGES, n)}
        # of a forgotten sample a version may have no image left to compare, although it counts as its sample
        stones = tombstones(Dataset(self.before.root)).keys | tombstones(Dataset(self.after.root)).keys
        self.database.register("forgotten", pa.table({"key": pa.array(sorted(stones), pa.string())}))
        for table, sides in (("old_images", old), ("new_images", new)):
            self.database.execute(f"CREATE TABLE {table} (key VARCHAR, data VARCHAR)")
            for shard in sorted(sides.keys() - same):
                self._insert(table, _digests(sides[shard], shard))
            self.database.execute(
                f"DELETE FROM {table} WHERE key IN (FROM old_keys UNION ALL FROM new_keys UNION ALL FROM forgotten)"
            )
        joined = "old_images o FULL JOIN new_images n USING (key)"
        yield from self._change(IMAGES, "data", "o.data", "n.data", joined)

    def _change(self, group: str, column: str, left: str, right: str, joined: str) -> Iterator[ColumnChange]:
        """The change of one column, if any: where the expressions `left` and `right` over the join differ."""
        differing = f"FROM {joined} WHERE {left} IS DISTINCT FROM {right}"
        number = self.database.execute(f"SELECT count(*) {differing}").fetchall()[0][0]
        if number:
            rows = self.database.execute(
                f"SELECT key, left({left}::VARCHAR, {SHOWN}), left({right}::VARCHAR, {SHOWN}) {differing} "
                f"ORDER BY key LIMIT {EXAMPLES}"
            ).fetchall()
            yield ColumnChange(group, column, int(number), tuple(Example(*row) for row in rows))

    def _load(self, table: str, dataset: Dataset, group: str, shards: list[int]) -> list[str]:
        """Make `table` of the named shards, of which there is at least one; its columns."""
        self.database.execute(f"DROP TABLE IF EXISTS {table}")
        names: list[str] = []
        for number, shard in enumerate(shards):
            rows = table_then(dataset, group, shard)
            names = rows.column_names
            self._insert(table, rows, create=number == 0)
        return names

    def _insert(self, table: str, rows: pa.Table, create: bool = False) -> None:
        self.database.register("shard_rows", _castable(rows))
        self.database.execute(
            f"CREATE TABLE {table} AS SELECT * FROM shard_rows" if create else f"INSERT INTO {table} FROM shard_rows"
        )
        self.database.unregister("shard_rows")


def _castable(rows: pa.Table) -> pa.Table:
    """Half floats as float32, which hold them exactly: DuckDB has no half floats."""
    for position, column in enumerate(rows.schema):
        kind = column.type
        if pa.types.is_float16(kind):
            rows = rows.set_column(position, column.name, rows.column(position).cast(pa.float32()))
        elif pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type):
            wide = pa.list_(pa.float32(), kind.list_size)
            rows = rows.set_column(position, column.name, rows.column(position).cast(wide))
    return rows


def _with_tar(dataset: Dataset, shard: int) -> Dataset:
    """The version in which the images of a shard can be read: `dataset`, or the newest where they were rewritten
    by forgetting since. Raises HarmonError where the tar is gone for another reason."""
    entry = dataset.entry(IMAGES, shard)
    if entry is None or dataset.store.exists(entry.path):
        return dataset
    now = Dataset(dataset.root)
    successor = now.entry(IMAGES, shard)
    if successor is None or successor.path == entry.path:
        raise HarmonError(f"{entry.path} of {dataset.root} is gone and was not forgotten; run `harmon audit`")
    return now


def _digests(dataset: Dataset, shard: int) -> pa.Table:
    """Key and SHA-256 of the bytes of each image of a shard, read one at a time."""
    images = dataset.images(shard)
    keys, digests = [], []
    try:
        for row in range(len(images)):
            image = images.raw(row)
            keys.append(image.key)
            digests.append(hashlib.sha256(image.data).hexdigest())
    finally:
        images.close()
    return pa.table({"key": pa.array(keys, pa.string()), "data": pa.array(digests, pa.string())})


def _quoted(name: str) -> str:
    return name.replace('"', '""')


def _title(dataset: Dataset) -> str:
    head = dataset.head
    return f"{dataset.root}@{head.number if head else '-'}"


def _groups(dataset: Dataset) -> set[str]:
    return {group for group in dataset.groups() if not is_volatile(group)}


def _files(dataset: Dataset, group: str) -> dict[int, FileEntry]:
    return {entry.shard: entry for entry in dataset.entries(group)}


def _differing(before: Dataset, after: Dataset, group: str) -> tuple[list[int], list[int]]:
    """Shards whose file of this group is not byte for byte in both versions; of each version."""
    old, new = _files(before, group), _files(after, group)
    same = {shard for shard in old.keys() & new.keys() if old[shard].sha256 == new[shard].sha256}
    return sorted(old.keys() - same), sorted(new.keys() - same)


def versions(dataset: str | Path, names: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    """The two versions that a command line names: two commit numbers, or one other dataset.

    Raises ConfigurationError for anything else, and HarmonError for a commit that is not there.
    """
    first = Dataset(dataset)
    if len(names) == 2 and all(name.isdecimal() for name in names):
        return first.at(int(names[0])), first.at(int(names[1]))
    if len(names) == 1 and not names[0].isdecimal():
        return first, Dataset(names[0])
    raise ConfigurationError(
        f"{' '.join(names) or 'nothing'} names no second version; give two commit numbers of {dataset}, "
        "or the path of one other dataset"
    )
