"""Repair: what mends an unsound dataset, planned from the findings of an audit, and done only when asked for.

Nothing is guessed: a file is replaced only by bytes that have the checksum its commit recorded, or that follow from
the commit alone. What a repair takes away it sets aside below the store's working folder, in `.work/damaged`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.archive import index_of, read_archive
from pipelines.audit import AuditReport
from pipelines.audit_files import count_failed, count_rejected
from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.disk import LocalStore, remove_folder
from pipelines.errors import HarmonError
from pipelines.findings import Finding
from pipelines.forget import delete_tombstoned
from pipelines.lineage import beside
from pipelines.manifest import (
    FORGET,
    IMAGES,
    INDEX,
    SOURCE,
    Commit,
    FileEntry,
    Receipt,
    group_hash,
    is_volatile,
    receipt_path,
    step_identity,
    step_path,
    written_by,
)
from pipelines.storage import Upload
from pipelines.workspace import DAMAGED, WORK, is_held

Action = Literal["delete", "drop_upload", "rebuild_index", "rebuild_record", "rebuild_receipt", "rerun", "restore"]


@dataclass(frozen=True)
class Mend:
    """One thing that would mend a finding."""

    action: Action
    path: str
    detail: str
    """What is done, and what a person has to do after it."""
    do: Callable[[], None] | None
    """None where no program can: the file has to come from a copy."""

    def to_json(self) -> dict[str, object]:
        """As `harmon audit --repair --json` prints it."""
        return {"action": self.action, "path": self.path, "detail": self.detail, "automatic": self.do is not None}


def plan_repair(dataset: Dataset, report: AuditReport) -> list[Mend]:
    """What would mend each finding of `report`, one entry a file; changes nothing.

    A finding that nothing can mend by program is in the plan as "restore", with the audit's advice.
    """
    by_path: dict[str, Mend] = {}
    for finding in report.findings:
        mend = _Plan(dataset, report.commits).mend(finding)
        if mend is not None and (finding.path not in by_path or by_path[finding.path].do is None):
            by_path[finding.path] = mend
    return list(by_path.values())


@dataclass(frozen=True)
class _Plan:
    dataset: Dataset
    commits: Sequence[Commit]

    def mend(self, finding: Finding) -> Mend | None:
        path = finding.path
        if finding.kind == "leftover_temporary":
            return Mend("delete", path, "an unfinished put is deleted", lambda: self.dataset.store.remove(path))
        if finding.kind == "leftover_work" and path != f"{WORK}/{DAMAGED}":
            return Mend(
                "delete", path, "what an attempt kept is deleted, unless it still runs", lambda: self._clear(path)
            )
        if finding.kind == "leftover_upload":
            uploads = [one for one in self.dataset.store.uploads() if one.path == path and one.abandoned]
            if not uploads:
                return None  # begun less than a day ago: another machine may be at work on it
            return Mend("drop_upload", path, "unfinished uploads are given up", lambda: self._drop(uploads))
        if finding.kind == "forgotten_file" and path not in {e.path for e in self.commits[-1].files}:
            detail = "a file that forgetting took away is deleted"
            return Mend("delete", path, detail, lambda: delete_tombstoned(self.dataset))
        if finding.sound:
            return None
        if (commit := self._step_record(path)) is not None:
            identity = _identity(commit)
            if sha256_hex(identity) == commit.step_key:
                detail = f"the record of step {commit.step} is written anew from its commit"
                return Mend("rebuild_record", path, detail, lambda: self._replace(path, identity))
        if (place := self._receipt(path)) is not None:
            commit, shard = place
            detail = f"the receipt of shard {shard} is written anew from its commit and its files"
            return Mend("rebuild_receipt", path, detail, lambda: self._rebuild_receipt(path, commit, shard))
        if (entry := self._entry(path)) is not None and not self._stands(entry):
            return self._mend_file(entry)
        return Mend("restore", path, finding.advice, None)

    def _mend_file(self, entry: FileEntry) -> Mend:
        if entry.group == INDEX:
            detail = "the index is made anew from its archive, which must give the recorded checksum"
            return Mend("rebuild_index", entry.path, detail, lambda: self._rebuild_index(entry))
        if is_volatile(entry.group):
            return Mend("restore", entry.path, "telemetry never comes out the same: put back a copy", None)
        commit = next((c for c in self.commits if entry in written_by(c)), None)
        if commit is None:
            detail = (
                "the manifest of the commit that wrote it cannot be read, so no step can be run again for it: put back "
                "a copy, or restore that manifest and repair again"
            )
            return Mend("restore", entry.path, detail, None)
        if not self._reads_the_same(commit):
            why = "forgetting" if commit.step == FORGET else f"step {commit.step}, which would read other data now,"
            detail = f"{why} cannot be run again to the same bytes: put back a copy"
            return Mend("restore", entry.path, detail, None)
        detail = (
            f"it is set aside with the receipt of shard {entry.shard}, so that running step {commit.step} again "
            "writes that shard anew; the result must have the recorded checksum"
        )
        return Mend("rerun", entry.path, detail, lambda: self._make_undone(commit, entry))

    # What a path is

    def _entry(self, path: str) -> FileEntry | None:
        files = self.commits[-1].files if self.commits else ()
        return next((entry for entry in files if entry.path == path), None)

    def _step_record(self, path: str) -> Commit | None:
        return next((commit for commit in self.commits if step_path(commit.step_key) == path), None)

    def _receipt(self, path: str) -> tuple[Commit, int] | None:
        for commit in self.commits:
            for shard in {entry.shard for entry in written_by(commit)}:
                if receipt_path(commit.step_key, shard) == path:
                    return commit, shard
        return None

    def _stands(self, entry: FileEntry) -> bool:
        """Whether the file has the bytes that its commit recorded: then no rerun can change it."""
        store = self.dataset.store
        return store.size(entry.path) == entry.bytes and store.sha256(entry.path) == entry.sha256

    def _reads_the_same(self, commit: Commit) -> bool:
        """Whether the step would find now what it read then, as far as that can be seen: else it has another key."""
        if commit.step == FORGET:
            return False
        for entry in commit.inputs:
            own = entry.dataset == self.dataset.name
            with contextlib.suppress(HarmonError):  # a dataset that is not there or damaged tells nothing
                head = self.commits[-1] if own else beside(self.dataset, entry.dataset).head
                files = head.files if head else ()
                hashes = {group: group_hash(group, [e for e in files if e.group == group]) for group in entry.groups}
                if head and hashes != entry.groups:
                    return False
        return True

    # What is done

    def _rebuild_index(self, entry: FileEntry) -> None:
        tar = self.commits[-1].by_place.get((IMAGES, entry.shard))
        if tar is None or not self.dataset.store.exists(tar.path):
            raise HarmonError(f"{self.dataset.store.where(entry.path)} has no archive to be made from; restore both")
        with self.dataset.store.open(tar.path) as stream:
            archive = read_archive(stream, tar.path)
        index = index_of(archive.samples, tar.bytes)
        if sha256_hex(index) != entry.sha256:
            raise HarmonError(
                f"the archive {self.dataset.store.where(tar.path)} is damaged too, so no index can be made from it; "
                "mend the archive first"
            )
        self._replace(entry.path, index)

    def _rebuild_receipt(self, path: str, commit: Commit, shard: int) -> None:
        own = [entry for entry in written_by(commit) if entry.shard == shard]
        source = commit.by_place[SOURCE, shard]
        makes_shard = source in own
        rejected = dict(count_rejected(self.dataset, commit, own))
        failed = {} if makes_shard else self._failed(commit, own)
        receipt = Receipt(
            step=commit.step,
            step_key=commit.step_key,
            shard=shard,
            files=tuple(_as_written(own)),
            rows_in=source.rows + (sum(rejected.values()) if makes_shard else 0),
            rows_out=source.rows - sum(failed.values()),
            rejected=rejected,
            failed=failed,
            schemas={entry.group: commit.schemas[entry.group] for entry in own if entry.group in commit.schemas},
            context={},
        )
        self._replace(path, receipt.to_bytes())

    def _failed(self, commit: Commit, own: Sequence[FileEntry]) -> dict[str, int]:
        counted = count_failed(self.dataset, commit, own)
        if counted is None and commit.failed:
            shard = own[0].shard
            raise HarmonError(
                f"the receipt of shard {shard} of step {commit.step} counted failed rows that no file tells of; "
                "restore it from a copy"
            )
        return dict(counted or {})

    def _make_undone(self, commit: Commit, entry: FileEntry) -> None:
        self._set_aside(entry.path)
        self._set_aside(receipt_path(commit.step_key, entry.shard))

    def _replace(self, path: str, data: bytes) -> None:
        self._set_aside(path)
        self.dataset.store.put(path, data)

    def _set_aside(self, path: str) -> None:
        """Move a file out of the dataset, into the local working folder; absent is fine."""
        store = self.dataset.store
        if not store.exists(path):
            return
        place = store.work(f"{WORK}/{DAMAGED}/{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(store, LocalStore):
            store.local(path).rename(place)
        else:
            with store.open(path) as stream, place.open("wb") as copy:
                while chunk := stream.read(1 << 20):
                    copy.write(chunk)
            store.remove(path)

    def _drop(self, uploads: Sequence[Upload]) -> None:
        for upload in uploads:
            self.dataset.store.drop_upload(upload)

    def _clear(self, path: str) -> None:
        folder = self.dataset.store.work(path)
        if is_held(folder):
            raise HarmonError(f"a process is at work in {folder}; let it end, or stop it, then repair again")
        remove_folder(folder)


def apply_repair(mends: Sequence[Mend]) -> Iterator[tuple[Mend, str | None]]:
    """Do what a program can, in the plan's order; each with None, or with the sentence that says why it failed."""
    for mend in mends:
        if mend.do is None:
            continue
        problem = None
        try:
            mend.do()
        except (HarmonError, OSError) as failure:
            problem = str(failure)
        yield mend, problem


def _identity(commit: Commit) -> bytes:
    return step_identity(commit.step, commit.version, commit.configuration, [entry.groups for entry in commit.inputs])


def _as_written(entries: Sequence[FileEntry]) -> list[FileEntry]:
    """In the order in which ShardOutput lists them: images, index, columns by name, rejects."""
    first = [entry for group in (IMAGES, INDEX) for entry in entries if entry.group == group]
    rest = [entry for entry in entries if entry not in first]
    return first + sorted(rest, key=lambda entry: (entry.path.startswith("rejects/"), entry.group))
