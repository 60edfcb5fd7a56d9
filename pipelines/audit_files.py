"""Audit of the files: those a dataset lists, opened and (deep) read whole, and those that nothing lists."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from pipelines.canonical import keys_sha256, sha256_hex
from pipelines.columns import read_columns, read_keys, read_schema
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.manifest import (
    IMAGES,
    INDEX,
    REJECTS,
    SOURCE,
    Commit,
    FileEntry,
    group_path,
    is_volatile,
    manifest_path,
    receipt_path,
    rejects_group,
    step_path,
)
from pipelines.shards import END, KEY, scan
from pipelines.storage import file_sha256, is_temporary
from pipelines.workspace import WORK

LAYOUT = re.compile(
    r"(?:images/(?P<images>[0-9a-f]{8})/\d{5,}\.tar(?:\.idx)?"
    r"|(?:columns|rejects)/[^/]+/(?P<table>[0-9a-f]{8})/\d{5,}\.parquet)"
)
STEP_FILE = re.compile(r"steps/([0-9a-f]{64})/(?:step|\d{5,})\.json")


def check_files(dataset: Dataset, head: Commit, deep: bool) -> Iterator[Finding]:
    """Every listed file: present, of its size, rows and schema, aligned; deep: of its bytes and keys."""
    for entry in head.files:
        try:
            findings = list(_check_file(dataset, head, entry, deep))
        except (HarmonError, ArrowException, OSError, ValueError) as problem:  # damage shows in many ways
            findings = [found("file_unreadable", entry.path, str(problem))]
        yield from findings


def _check_file(dataset: Dataset, head: Commit, entry: FileEntry, deep: bool) -> Iterator[Finding]:
    size = dataset.store.size(entry.path)
    path = dataset.store.local(entry.path)
    if size is None or path.is_symlink():
        yield found("file_missing", entry.path, f"shard {entry.shard} of {entry.group} is absent or only a link")
    elif size != entry.bytes:
        yield found("size_differs", entry.path, f"{size} bytes, not {entry.bytes}")
    elif deep and (sha256 := file_sha256(path)) != entry.sha256:
        yield found("hash_differs", entry.path, f"sha256 {sha256[:12]}, not {entry.sha256[:12]}")
    elif entry.group == INDEX:
        yield from _check_index(dataset, head, entry)
    elif entry.group == IMAGES:
        if deep:
            yield from _check_members(dataset, head, entry)
    else:
        yield from _check_columns(dataset, head, entry, deep)


def _check_columns(dataset: Dataset, head: Commit, entry: FileEntry, deep: bool) -> Iterator[Finding]:
    path = dataset.store.local(entry.path)
    rows, schema = pq.read_metadata(path).num_rows, read_schema(path)
    if rows != entry.rows:
        yield found("rows_differ", entry.path, f"{rows} rows, not {entry.rows}")
    if changed := set(schema.items()) ^ set(head.schemas.get(entry.group, {}).items()):
        yield found("schema_differs", entry.path, f"columns {sorted({name for name, _ in changed})}")
    source = head.by_place.get((SOURCE, entry.shard))
    aligned = source and (entry.rows, entry.keys_sha256) == (source.rows, source.keys_sha256)
    if not aligned and not entry.group.startswith(REJECTS):
        yield found("keys_misaligned", entry.path, f"its keys are not those of source, shard {entry.shard}")
    if (deep or entry.group == SOURCE) and keys_sha256(read_keys(path)) != entry.keys_sha256:
        yield found("keys_differ", entry.path, "its key column does not have the recorded hash")


def _check_index(dataset: Dataset, head: Commit, entry: FileEntry) -> Iterator[Finding]:
    tar = head.by_place.get((IMAGES, entry.shard))
    if tar is None:
        yield found("index_differs", entry.path, "it has no archive")
        return
    offsets = np.frombuffer(dataset.store.read(entry.path), dtype="<u8")
    if len(offsets) != tar.rows + 1 or int(offsets[-1]) + len(END) != tar.bytes:
        yield found("index_differs", entry.path, f"it does not fit {tar.path} with {tar.rows} images")


def _check_members(dataset: Dataset, head: Commit, entry: FileEntry) -> Iterator[Finding]:
    """Deep: the archive alone, against its index and against the rows of source."""
    try:
        samples = list(scan(dataset.store.local(entry.path)))
    except HarmonError as problem:
        yield found("members_differ", entry.path, str(problem))
        return
    offsets, keys = [offset for offset, _ in samples], [key for _, key in samples]
    if keys_sha256(keys) != entry.keys_sha256 or len(keys) != entry.rows:
        yield found("keys_differ", entry.path, "its members' keys do not have the recorded hash")
    index = head.by_place.get((INDEX, entry.shard))
    if index is None or not dataset.store.exists(index.path):
        yield found("index_differs", entry.path, "it has no index")
    elif np.frombuffer(dataset.store.read(index.path), dtype="<u8")[:-1].tolist() != offsets:
        yield found("index_differs", index.path, f"its offsets are not those of the samples in {entry.path}")
    source = head.by_place.get((SOURCE, entry.shard))
    if source is None or not dataset.store.exists(source.path):
        return  # reported for the source file itself
    rows = read_columns(dataset.store.local(source.path), ["key", "task"])
    tasks = dict(zip(rows.column("key").to_pylist(), rows.column("task").to_pylist()))
    members = set(keys)
    if [key for key in tasks if key in members] != keys:
        yield found("members_differ", entry.path, "its members are not rows of source in the same order")
    bare = [key for key, task in tasks.items() if task != "text" and key not in members]
    if bare:
        yield found("members_differ", entry.path, f"{len(bare)} rows have no image, first {bare[0]}")


def check_reasons(dataset: Dataset, commits: Sequence[Commit]) -> Iterator[Finding]:
    """Deep: the reasons of rejects and of failed rows, in the files that each step wrote, are those it counted."""
    for commit in commits:
        own = _written_by(commit)
        try:
            rejects = [entry for entry in own if entry.group == rejects_group(commit.step, commit.step_key)]
            counted = {"rejected": (_rejected(dataset, rejects), commit.rejected)}
            if (failed := _failed(dataset, own)) is not None:
                counted["failed"] = (failed, commit.failed)
        except (HarmonError, ArrowException, OSError, ValueError):
            continue  # unreadable: check_files reports it
        for word, (there, told) in counted.items():
            if there != told:
                detail = f"step {commit.step} counted {dict(told)} {word}, its files say {dict(there)}"
                yield found("reasons_differ", manifest_path(commit.number), detail)


def _written_by(commit: Commit) -> list[FileEntry]:
    """The files of a commit that its own step wrote."""
    return [e for e in commit.files if e.path == group_path(e.group, commit.step_key, e.shard)]


def _rejected(dataset: Dataset, rejects: Sequence[FileEntry]) -> Mapping[str, int]:
    paths = [dataset.store.local(entry.path) for entry in rejects]
    return Counter(reason for path in paths for reason in read_columns(path, ["reason"]).column(0).to_pylist())


def _failed(dataset: Dataset, own: Sequence[FileEntry]) -> Mapping[str, int] | None:
    """Reasons of the failed rows, each once, as ShardOutput counts them; None where the files do not say.

    A step that makes shards rejects and fails nothing; one without `status` has told its counts itself.
    """
    if any(entry.group == SOURCE for entry in own):
        return None
    failures: dict[str, str] = {}
    spoken: set[int] = set()
    for entry in own:  # groups of a shard in alphabetical order
        path = dataset.store.local(entry.path)
        if is_volatile(entry.group) or "status" not in read_schema(path):
            continue
        spoken.add(entry.shard)
        rows = read_columns(path, ["key", "status", "reason"]).to_pylist()
        failures |= {row["key"]: row["reason"] for row in rows if row["status"] != "ok"}
    return Counter(failures.values()) if spoken and spoken == {entry.shard for entry in own} else None


def check_sources(dataset: Dataset, head: Commit) -> Iterator[Finding]:
    """Keys unique in the whole dataset, and terms recorded for every source in it."""
    sources: Counter[str] = Counter()
    words: list[NDArray[np.uint64]] = []
    entries = [entry for entry in head.files if entry.group == SOURCE]
    for entry in entries:
        try:
            table = read_columns(dataset.store.local(entry.path), ["key", "source"])
            sources.update(table.column("source").to_pylist())
            words.append(_words(table.column("key").to_pylist()))
        except (HarmonError, ArrowException, OSError):
            words.append(np.zeros((0, 2), np.uint64))  # unreadable: check_files reports it
        except ValueError as problem:
            yield found("keys_differ", entry.path, str(problem))
            words.append(np.zeros((0, 2), np.uint64))
    yield from _duplicates(entries, words)
    for source in sorted(name for name in sources if name not in head.terms):
        detail = f"{sources[source]} rows come from {source}, whose terms are not recorded"
        yield found("terms_missing", manifest_path(head.number), detail)


def _words(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Keys as uint64 [n, 2], 16 bytes each. Raises ValueError for what is no key."""
    for key in keys:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a key of 32 lower-case hex digits")
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _duplicates(entries: Sequence[FileEntry], words: Sequence[NDArray[np.uint64]]) -> Iterator[Finding]:
    if not words:
        return
    everything = np.concatenate(words)
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    same = (everything[order[1:]] == everything[order[:-1]]).all(axis=1)
    ends = np.cumsum([len(part) for part in words])
    for position in np.flatnonzero(same)[:100]:  # the first hundred tell the story
        first, second = sorted(int(order[position + step]) for step in (0, 1))
        places = [entries[int(np.searchsorted(ends, row, side="right"))] for row in (first, second)]
        key = "".join(f"{int(word):016x}" for word in everything[first])
        detail = f"the key {key} is in shard {places[0].shard} and again in shard {places[1].shard}"
        yield found("key_duplicated", places[1].path, detail)


def check_unlisted(dataset: Dataset, commits: Sequence[Commit]) -> Iterator[Finding]:
    """Files that nothing lists: leftovers of attempts, which are harmless, and foreign ones."""
    listed = _listed(commits) | {manifest_path(number) for number in dataset.commit_numbers()}
    paths = [path for path in dataset.store.list() if path not in listed]
    uncommitted = _uncommitted(dataset, paths, {commit.step_key for commit in commits})
    work: Counter[str] = Counter()
    for path in paths:
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


def _listed(commits: Sequence[Commit]) -> set[str]:
    listed: set[str] = set()
    for commit in commits:
        listed |= {entry.path for entry in commit.files}
        listed.add(step_path(commit.step_key))
        listed |= {receipt_path(commit.step_key, entry.shard) for entry in _written_by(commit)}
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
