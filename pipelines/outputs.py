"""What one shard of a step writes, checked as a whole before its receipt says that it is done."""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.canonical import keys_sha256
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA, conform, read_keys, read_schema, write_columns
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import (
    FORGET,
    IMAGES,
    INDEX,
    REJECTS,
    SOURCE,
    FileEntry,
    Receipt,
    group_path,
    is_volatile,
    receipt_path,
    rejects_group,
)
from pipelines.shards import ShardWriter, index_path
from pipelines.storage import OtherBytes, file_sha256

GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class _Columns:
    """A group written to a temporary file, with what the checks need to know of it."""

    path: Path
    keys: list[str]
    schema: dict[str, str]
    failures: dict[str, str]
    """Key to reason, of the rows whose `status` is failed."""


class ShardOutput:
    """Collects the files of one shard; `finish` checks that they agree, stores them and writes the receipt.

    A step that writes the group "source" makes a new shard (images optional: text rows have none). Any other
    adds columns to a shard that stands, with every row in its order. Forgetting alone makes a shard anew.
    """

    def __init__(
        self,
        dataset: Dataset,
        step: str,
        step_key: str,
        shard: int,
        folder: Path,
        on_done: Callable[[int], None],
    ) -> None:
        self._dataset = dataset
        self._step = step
        self._key = step_key
        self._shard = shard
        self._folder = folder
        self._images: ShardWriter | None = None
        self._columns: dict[str, _Columns] = {}
        self._own_rejects = rejects_group(step, step_key)
        self._rejects: dict[str, list[pa.Table]] = {}
        self._tasks: list[str] = []
        self._on_done = on_done
        self._began = time.monotonic()

    @property
    def _where(self) -> str:
        return f"shard {self._shard} of step {self._step} in {self._dataset.root}"

    def images(self) -> ShardWriter:
        """The writer of this shard's images (the same one at each call); `finish` closes it."""
        if self._images is None:
            self._images = ShardWriter(self._folder / "images.tar")
        return self._images

    def columns(self, group: str, table: pa.Table) -> None:
        """Write one column group: `key` first, every row of the shard in order.

        Rows that can fail carry `status` ("ok" or "failed") and `reason`. A name ending in ".telemetry" is
        volatile: stored and listed, outside content hashes and step keys.
        """
        if not GROUP.fullmatch(group) or group in (IMAGES, INDEX) or group.startswith(REJECTS):
            raise HarmonError(f"{group!r} cannot name a column group of {self._where}")
        if group in self._columns:
            raise HarmonError(f"the group {group} was written twice for {self._where}")
        if group == SOURCE:
            table = conform(table, SOURCE_SCHEMA, f"the group source of {self._where}")
            self._tasks = table.column("task").to_pylist()
        untyped = [field.name for field in table.schema if pa.types.is_null(field.type)]
        if untyped:
            raise HarmonError(f"columns {untyped} of group {group} have no type; give {self._where} an explicit schema")
        path = self._folder / f"{group}.parquet"
        write_columns(table, path)
        keys = table.column("key").to_pylist()
        self._columns[group] = _Columns(path, keys, read_schema(path), _failures(group, table))

    def rejects(self, table: pa.Table, group: str | None = None) -> None:
        """Add rows that leave here (REJECT_SCHEMA, a reason each); may be called several times.

        `group` names the rejects of another step, which forgetting writes anew.
        """
        table = conform(table, REJECT_SCHEMA, f"the rejects of {self._where}")
        if table.column("reason").null_count or table.column("key").null_count:
            raise HarmonError(f"a reject of {self._where} has no key or no reason; every row that leaves says why")
        self._rejects.setdefault(group or self._own_rejects, []).append(table)

    def finish(self, rows_in: int, rows_failed: Mapping[str, int] | None = None) -> Receipt:
        """Check conservation and alignment, store every file, write the receipt.

        `rows_failed` counts by reason the rows of a column step without values; where a group has a `status`
        column it is counted from there, and has to agree. Files of a killed attempt are verified and adopted.
        """
        if self._images is not None:
            self._images.close()
        makes_shard = SOURCE in self._columns
        self._check_new_shard() if makes_shard else self._check_columns(rows_in)
        failed = {} if makes_shard else self._count_failed(rows_failed)
        left = self._rejects.get(self._own_rejects, [])
        rejected = dict(Counter(reason for table in left for reason in table.column("reason").to_pylist()))
        rows_out = len(self._columns[SOURCE].keys) if makes_shard else rows_in - sum(failed.values())
        if makes_shard and rows_in != rows_out + sum(rejected.values()):
            raise HarmonError(
                f"{rows_in} rows went into {self._where}, but {rows_out} came out and "
                f"{sum(rejected.values())} were rejected; every row has to be in one of the two"
            )
        receipt = Receipt(
            step=self._step,
            step_key=self._key,
            shard=self._shard,
            files=tuple(self._store_files()),
            rows_in=rows_in,
            rows_out=rows_out,
            rejected=rejected,
            failed=failed,
            schemas=self._schemas(),
            context={"seconds": round(time.monotonic() - self._began, 3)},
        )
        standing = self._write(receipt)
        self._on_done(self._shard)
        return standing

    # Checks

    def _check_new_shard(self) -> None:
        source = self._columns[SOURCE].keys
        if len(set(source)) != len(source):
            raise HarmonError(f"a key comes twice in {self._where}; reject the second row as a duplicate")
        for group, columns in self._columns.items():
            if columns.keys != source:
                raise HarmonError(f"the keys of group {group} are not those of source, in order, in {self._where}")
        if self._images is not None:
            self._check_members(source, self._images.keys)
        standing = self._dataset.entry(SOURCE, self._shard)
        if self._step == FORGET:
            return
        if standing and standing.path != group_path(SOURCE, self._key, self._shard):
            raise HarmonError(f"{self._where} stands already ({standing.path}); give the new shard its own number")

    def _check_members(self, source: Sequence[str], members: Sequence[str]) -> None:
        known = set(members)
        if [key for key in source if key in known] != list(members):
            raise HarmonError(f"the images of {self._where} are not rows of source in the same order")
        bare = [key for key, task in zip(source, self._tasks, strict=True) if key not in known and task != "text"]
        if bare:
            raise HarmonError(f"{len(bare)} rows of {self._where} are not text and have no image ({bare[0]}, …)")

    def _check_columns(self, rows_in: int) -> None:
        standing = self._dataset.entry(SOURCE, self._shard)
        if standing is None or self._images is not None or self._rejects or not self._columns:
            raise HarmonError(
                f"{self._where} has no group source: a step that writes images or rejects, or a shard that "
                "does not stand yet, has to write it; any other writes at least one column group"
            )
        if rows_in != standing.rows:
            raise HarmonError(
                f"{rows_in} rows went into {self._where}, which has {standing.rows}; none may be left out"
            )
        for group, columns in self._columns.items():
            if keys_sha256(columns.keys) != standing.keys_sha256:
                raise HarmonError(f"group {group} of {self._where} does not have the shard's keys in the shard's order")
            there = self._dataset.entry(group, self._shard)
            if there and there.path != group_path(group, self._key, self._shard):
                raise HarmonError(
                    f"group {group} of {self._where} was written by another step ({there.path}) and is never "
                    "rewritten; give the new values a new group name"
                )

    def _count_failed(self, told: Mapping[str, int] | None) -> dict[str, int]:
        failures = {
            key: reason for group in sorted(self._columns) for key, reason in self._columns[group].failures.items()
        }
        counted = dict(Counter(failures.values()))
        if any("status" in columns.schema for columns in self._columns.values()):
            if told is not None and {r: n for r, n in told.items() if n} != counted:
                raise HarmonError(f"{self._where} was told of failed rows {dict(told)}, but its status says {counted}")
            return counted
        return {reason: number for reason, number in (told or {}).items() if number}

    # Files

    def _schemas(self) -> dict[str, dict[str, str]]:
        schemas = {group: columns.schema for group, columns in self._columns.items()}
        schemas |= {group: {field.name: str(field.type) for field in REJECT_SCHEMA} for group in self._rejects}
        return schemas

    def _store_files(self) -> list[FileEntry]:
        entries = []
        if (writer := self._images) is not None:
            entries.append(self._take(IMAGES, writer.path, writer.keys, writer.tar_sha256))
            entries.append(self._take(INDEX, index_path(writer.path), writer.keys, writer.idx_sha256))
        for group, columns in sorted(self._columns.items()):
            entries.append(self._take(group, columns.path, columns.keys))
        for group, tables in sorted(self._rejects.items()):
            path = self._folder / f"{group}.parquet"
            table = pa.concat_tables(tables)
            write_columns(table, path)
            entries.append(self._take(group, path, table.column("key").to_pylist()))
        return entries

    def _take(self, group: str, path: Path, keys: Sequence[str], sha256: str | None = None) -> FileEntry:
        target = group_path(group, self._key, self._shard)
        if is_volatile(group) and self._dataset.store.exists(target):
            return self._adopt(group, target, keys)
        sha256 = sha256 or file_sha256(path)
        standing = self._dataset.entry(group, self._shard)
        if standing and standing.path == target and standing.sha256 != sha256 and not is_volatile(group):
            raise HarmonError(
                f"group {group} of {self._where} came out differently than the commit that stands says "
                f"(sha256 {sha256[:12]}, not {standing.sha256[:12]}); put back a copy of {target}"
            )
        try:
            stored = self._dataset.store.take(target, path, sha256)
        except OtherBytes:
            if not is_volatile(group):
                raise
            return self._adopt(group, target, keys)  # another process was faster by a moment
        return FileEntry(
            group=group,
            shard=self._shard,
            path=target,
            rows=len(keys),
            bytes=stored.bytes,
            sha256=stored.sha256,
            keys_sha256=keys_sha256(keys),
        )

    def _adopt(self, group: str, target: str, keys: Sequence[str]) -> FileEntry:
        """Telemetry of a killed attempt stands: the first facts stay if they are about the same rows."""
        store = self._dataset.store
        if read_keys(store.readable(target)) != list(keys):
            raise HarmonError(
                f"{store.where(target)} is telemetry of other rows than {self._where} has; move it away and run again"
            )
        return FileEntry(
            group=group,
            shard=self._shard,
            path=target,
            rows=len(keys),
            bytes=store.size(target) or 0,
            sha256=store.sha256(target),
            keys_sha256=keys_sha256(keys),
        )

    def _write(self, receipt: Receipt) -> Receipt:
        path = receipt_path(self._key, self._shard)
        try:
            self._dataset.store.put(path, receipt.to_bytes())
        except OtherBytes:
            there = Receipt.from_bytes(self._dataset.store.read(path), path)
            if not there.same_result(receipt):
                raise HarmonError(f"{self._where} came out differently than its receipt {path} says") from None
            return there
        return receipt


def _failures(group: str, table: pa.Table) -> dict[str, str]:
    """Key to reason of the failed rows. Raises HarmonError for an unknown status or a missing reason."""
    if "status" not in table.column_names or is_volatile(group):
        return {}
    if "reason" not in table.column_names:
        raise HarmonError(f"the group {group} has a status and no reason; failed rows have to say why")
    failures = {}
    for key, status, reason in zip(
        *(table.column(name).to_pylist() for name in ("key", "status", "reason")), strict=True
    ):
        if status not in ("ok", "failed") or (status == "failed" and not reason):
            raise HarmonError(f"row {key} of group {group} has status {status!r} and reason {reason!r}")
        if status == "failed":
            failures[key] = reason
    return failures
