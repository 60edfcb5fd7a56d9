"""A dataset as it is read: commits, shards, column groups and images."""

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.columns import REJECT_SCHEMA, read_batches, read_columns
from pipelines.disk import LocalStore
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.location import S3Url
from pipelines.manifest import (
    IMAGES,
    INDEX,
    REJECTS,
    SOURCE,
    Commit,
    FileEntry,
    group_hash,
    is_volatile,
    manifest_path,
)
from pipelines.shards import ImageShard
from pipelines.storage import open_store

MANIFEST = re.compile(r"manifest/(\d{6})\.json")


class Dataset:
    """A folder of numbered shards, local or s3://bucket/prefix, seen through its newest commit.

    A folder that does not exist yet is an empty dataset. Commits never change, so they are kept once read;
    `head` looks again each time (in S3 at most once a second), so a commit by another process is seen.
    """

    def __init__(self, root: str | Path | S3Url, until: int | None = None) -> None:
        """`until`: the newest commit to see, as `at` does.

        Raises ConfigurationError for a URL of another scheme than s3.
        """
        self.store = open_store(root)
        self._until = until
        self.root = self.store.root
        self._commits: dict[int, Commit] = {}
        self._seen: int | None = None
        """Number of the newest commit when `_looked` (a moment of the monotonic clock)."""
        self._looked = float("-inf")

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r})"

    @property
    def name(self) -> str:
        """The folder's name, by which other datasets' manifests speak of this one."""
        return self.root.absolute().name

    # Commits

    def commit_numbers(self) -> list[int]:
        """Numbers of the manifests present, ascending."""
        found = (MANIFEST.fullmatch(path) for path in self.store.list("manifest"))
        numbers = sorted(int(match[1]) for match in found if match)
        numbers = [number for number in numbers if self._until is None or number <= self._until]
        self._seen, self._looked = numbers[-1] if numbers else None, time.monotonic()
        return numbers

    def at(self, number: int) -> "Dataset":
        """The dataset as commit `number` describes it; files that were forgotten since cannot be read.

        Raises HarmonError where there is no such commit.
        """
        if number not in (numbers := self.commit_numbers()):
            raise HarmonError(f"the dataset {self.root} has no commit {number}; it has {numbers or 'none'}")
        return Dataset(self.root, until=number)

    def commit(self, number: int) -> Commit:
        """The commit of this number. Raises HarmonError where it is absent or no manifest."""
        if number not in self._commits:
            path = manifest_path(number)
            self._commits[number] = Commit.from_bytes(self.store.read(path), self.store.where(path))
        return self._commits[number]

    def commits(self) -> list[Commit]:
        """All commits, oldest first."""
        return [self.commit(number) for number in self.commit_numbers()]

    @property
    def head(self) -> Commit | None:
        """The newest commit, or None for an empty dataset."""
        if self._seen is not None and time.monotonic() - self._looked < self.store.lag:
            return self.commit(self._seen)
        return self.newest()

    def newest(self) -> Commit | None:
        """The newest commit of this very moment: what the next one is put on top of."""
        numbers = self.commit_numbers()
        return self.commit(numbers[-1]) if numbers else None

    def commit_of(self, step_key: str) -> Commit | None:
        """The commit that a step of this key made, or None."""
        return next((commit for commit in reversed(self.commits()) if commit.step_key == step_key), None)

    # What stands

    def entries(self, group: str) -> list[FileEntry]:
        """The files of one group in shard order; empty for an unknown group."""
        head = self.head
        files = head.files if head else ()
        return sorted((entry for entry in files if entry.group == group), key=lambda entry: entry.shard)

    def entry(self, group: str, shard: int) -> FileEntry | None:
        """The file of (group, shard), or None."""
        head = self.head
        return head.by_place.get((group, shard)) if head else None

    def groups(self) -> list[str]:
        """Names of the groups that hold data: "images", "source", "clarity", …, telemetry included."""
        head = self.head
        names = {entry.group for entry in head.files} if head else set()
        return sorted(name for name in names if name != INDEX and not name.startswith(REJECTS))

    @property
    def shard_numbers(self) -> list[int]:
        """Numbers of the shards that have rows of their own (the group "source"), ascending."""
        return [entry.shard for entry in self.entries(SOURCE)]

    def rows(self, shard: int) -> int:
        """Rows of one shard."""
        return self._need(SOURCE, shard).rows

    @property
    def total_rows(self) -> int:
        """Rows of the whole dataset."""
        return sum(entry.rows for entry in self.entries(SOURCE))

    def group_hash(self, group: str) -> str:
        """Hash of exactly that group's files, for step keys.

        Raises ConfigurationError for a telemetry group, which no key includes, and HarmonError for an absent
        one.
        """
        if is_volatile(group):
            raise ConfigurationError(f"the group {group} of {self.name} is telemetry: no step may depend on it")
        entries = self.entries(group)
        if not entries:
            raise HarmonError(
                f"the dataset {self.root} has no group {group!r}; it has {', '.join(self.groups()) or 'none'}"
            )
        return group_hash(group, entries)

    # Data

    def table(self, group: str, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard of a column group: one row per key, in shard order. `columns` limits what is read."""
        entry = self._need(group, shard)
        table = read_columns(self.store.readable(entry.path), columns)
        self._check_rows(entry, table.num_rows)
        return table

    def batches(self, group: str, shard: int, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """`table` in order, at most `rows` rows at a time, where a whole column may be too much to hold."""
        entry, seen = self._need(group, shard), 0
        for batch in read_batches(self.store.readable(entry.path), columns, rows):
            seen += batch.num_rows
            yield batch
        self._check_rows(entry, seen)

    def _check_rows(self, entry: FileEntry, rows: int) -> None:
        if rows != entry.rows:
            raise HarmonError(
                f"{self.store.where(entry.path)} has {rows} rows, its manifest says {entry.rows}; run `harmon audit`"
            )

    def whole_table(self, group: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All shards of a column group, one after the other: for small datasets and small columns."""
        shards = [entry.shard for entry in self.entries(group)]
        if not shards:
            raise HarmonError(
                f"the dataset {self.root} has no group {group!r}; it has {', '.join(self.groups()) or 'none'}"
            )
        return pa.concat_tables([self.table(group, shard, columns) for shard in shards])

    def rejects(self) -> pa.Table:
        """Every row that a step of this dataset turned away: REJECT_SCHEMA and the step's name."""
        head = self.head
        tables = [REJECT_SCHEMA.empty_table().append_column("step", pa.array([], pa.string()))]
        for entry in head.files if head else ():
            if entry.group.startswith(REJECTS):
                step = pa.array([entry.group.removeprefix(REJECTS)] * entry.rows, pa.string())
                tables.append(self.table(entry.group, entry.shard).append_column("step", step))
        return pa.concat_tables(tables)

    def images(self, shard: int) -> ImageShard:
        """The images of one shard. Raises HarmonError where the shard has none (text only)."""
        tar, index = self._need(IMAGES, shard), self._need(INDEX, shard)
        if isinstance(self.store, LocalStore):
            return ImageShard(self.store.local(tar.path), self.store.local(index.path))
        return ImageShard.stored(self.store, tar.path, index.path, lambda: self._keys_with_image(shard))

    def _keys_with_image(self, shard: int) -> list[str]:
        """Keys of the rows that are not text: each has an image, and other rows hardly ever."""
        rows = self.table(SOURCE, shard, ["key", "task"])
        keys: list[str] = rows.filter(pc.not_equal(rows["task"], "text"))["key"].to_pylist()
        return keys

    def _need(self, group: str, shard: int) -> FileEntry:
        entry = self.entry(group, shard)
        if entry is None:
            raise HarmonError(
                f"the dataset {self.root} has no shard {shard} of group {group!r}; its groups are "
                f"{', '.join(self.groups()) or 'none'} and its shards {self.shard_numbers}"
            )
        return entry
