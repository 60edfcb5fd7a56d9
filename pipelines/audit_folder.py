"""Audit of what nothing lists: leftovers of attempts, which are harmless, and foreign files, which are not."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.findings import Finding, found
from pipelines.manifest import Commit, manifest_path, receipt_path, step_path, written_by
from pipelines.storage import is_temporary
from pipelines.workspace import WORK

LAYOUT = re.compile(
    r"(?:images/(?P<images>[0-9a-f]{8})/\d{5,}\.tar(?:\.idx)?"
    r"|(?:columns|rejects)/[^/]+/(?P<table>[0-9a-f]{8})/\d{5,}\.parquet)"
)
STEP_FILE = re.compile(r"steps/([0-9a-f]{64})/(?:step|\d{5,})\.json")


def check_unlisted(dataset: Dataset, commits: Sequence[Commit], paths: Iterable[str]) -> Iterator[Finding]:
    """What is wrong with those of `paths`, everything in the dataset's folder, that no commit accounts for."""
    listed = _listed(commits) | {manifest_path(number) for number in dataset.commit_numbers()}
    strays = [path for path in paths if path not in listed]
    uncommitted = _uncommitted(dataset, strays, {commit.step_key for commit in commits})
    work: Counter[str] = Counter()
    for path in strays:
        if path.startswith(f"{WORK}/"):
            work["/".join(path.split("/")[:2])] += 1
        elif is_temporary(path):
            yield found("leftover_temporary", path, "never completed")
        elif (step := _leftover_of(path, uncommitted)) is not None:
            yield found("leftover_uncommitted", path, f"step key {step[:12]} has no commit")
        else:
            yield found("foreign_file", path, "no commit, receipt or attempt accounts for it")
    for folder, number in sorted(work.items()):
        yield found("leftover_work", folder, f"{number} files")
    for upload in dataset.store.uploads():
        yield found("leftover_upload", upload.path, f"upload {upload.id} was begun and never completed")


def _listed(commits: Sequence[Commit]) -> set[str]:
    listed: set[str] = set()
    for commit in commits:
        listed |= {entry.path for entry in commit.files}
        listed.add(step_path(commit.step_key))
        listed |= {receipt_path(commit.step_key, entry.shard) for entry in written_by(commit)}
    return listed


def _uncommitted(dataset: Dataset, paths: Sequence[str], committed: set[str]) -> Mapping[str, str]:
    """First eight digits to step key, of attempts that named themselves here and have no commit."""
    keys = {match[1] for path in paths if (match := STEP_FILE.fullmatch(path))} - committed
    known = {key for key in keys if dataset.store.exists(step_path(key))}
    taken = {key[:8] for key in committed}
    named = {key for key in known if sha256_hex(dataset.store.read(step_path(key))) == key}
    return {key[:8]: key for key in named if key[:8] not in taken}


def _leftover_of(path: str, uncommitted: Mapping[str, str]) -> str | None:
    """The step key of the attempt that may have left this file, or None."""
    if match := STEP_FILE.fullmatch(path):
        key = match[1]
        return key if uncommitted.get(key[:8]) == key else None
    if match := LAYOUT.fullmatch(path):
        return uncommitted.get(match["images"] or match["table"])
    return None
