"""Audit of the files that a dataset lists: each opened, and (deep) read whole, several at a time."""

import io
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowException

from pipelines.archive import read_archive
from pipelines.audit_keys import UniqueKeys, column_sha256, locate_duplicates, words
from pipelines.audit_pictures import check_pictures
from pipelines.canonical import keys_sha256, sha256_hex
from pipelines.columns import parquet_file, read_columns, schema_of
from pipelines.dataset import Dataset
from pipelines.disk import LocalStore
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.manifest import (
    IMAGES,
    INDEX,
    REJECTS,
    SOURCE,
    Commit,
    FileEntry,
    is_volatile,
    manifest_path,
    rejects_group,
    written_by,
)
from pipelines.ustar import END

DAMAGE = (HarmonError, ArrowException, OSError, ValueError)  # the many ways in which a file's damage shows
HELD = 64 << 20  # a file of up to so many bytes is fetched once, hashed and parsed from memory
REMOTE_WORKERS = 16  # files under way at a time where each waits for a server

Progress = Callable[[int, int], None]
"""Told how many of how many files are done."""


@dataclass(frozen=True)
class Depth:
    """How far an audit looks."""

    deep: bool
    """Whether every byte is read again."""
    decode: float
    """Share of the images that are decoded, 0 to 1; chosen by key, so that the same are chosen again."""


@dataclass(frozen=True)
class _Seen:
    """What one listed file gave."""

    findings: tuple[Finding, ...]
    keys: NDArray[np.uint64] | None = None
    """Of a file of the group source: its keys, uint64 [n, 2]."""
    sources: Mapping[str, int] | None = None
    """Of a file of the group source: rows by source name."""


def check_files(
    dataset: Dataset,
    head: Commit,
    sizes: Mapping[str, int | None],
    depth: Depth,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Every listed file: present, of its size, rows and schema, aligned; deep: of its bytes and keys.

    Besides, from the keys of `source`: unique in the whole dataset; and terms recorded for every source.
    Memory is bounded, whatever the number of rows.
    """
    unique = UniqueKeys(sum(entry.rows for entry in head.files if entry.group == SOURCE))
    sources: Counter[str] = Counter()

    def look(entry: FileEntry) -> _Seen:
        try:
            return _look(dataset, head, entry, sizes, depth)
        except DAMAGE as problem:
            return _Seen((found("file_unreadable", entry.path, str(problem)),))

    for number, seen in enumerate(_in_order(look, head.files, _workers(dataset)), start=1):
        yield from seen.findings
        if seen.keys is not None:
            unique.add(seen.keys)
        sources.update(seen.sources or {})
        if progress:
            progress(number, len(head.files))
    yield from locate_duplicates(dataset, [e for e in head.files if e.group == SOURCE], unique.duplicates())
    for source in sorted(name for name in sources if not _says_terms(head.terms.get(name))):
        detail = f"{sources[source]} rows come from {source}, whose licence and terms are not recorded"
        yield found("terms_missing", manifest_path(head.number), detail)


def _says_terms(record: object) -> bool:
    """Whether a source's record names its licence and its terms."""
    return isinstance(record, Mapping) and all(record.get(name) for name in ("licence", "terms"))


def _workers(dataset: Dataset) -> int:
    return min(8, os.cpu_count() or 1) if isinstance(dataset.store, LocalStore) else REMOTE_WORKERS


def _in_order(look: Callable[[FileEntry], _Seen], entries: Sequence[FileEntry], workers: int) -> Iterator[_Seen]:
    """`look` at each entry in threads, answers in order, few of them waiting: hashing and Parquet free the GIL."""
    waiting: deque[Future[_Seen]] = deque()
    rest = iter(entries)
    with ThreadPoolExecutor(workers) as pool:
        for entry in itertools.islice(rest, 2 * workers):
            waiting.append(pool.submit(look, entry))
        while waiting:
            yield waiting.popleft().result()
            for entry in itertools.islice(rest, 1):
                waiting.append(pool.submit(look, entry))


def _look(dataset: Dataset, head: Commit, entry: FileEntry, sizes: Mapping[str, int | None], depth: Depth) -> _Seen:
    size = sizes.get(entry.path)
    if size is None:
        detail = f"shard {entry.shard} of {entry.group} is absent or only a link"
        return _Seen((found("file_missing", entry.path, detail),))
    if size != entry.bytes:
        return _Seen((found("size_differs", entry.path, f"{size} bytes, not {entry.bytes}"),))
    if entry.group == IMAGES:
        return _Seen(tuple(_check_images(dataset, head, entry, depth)) if depth.deep else ())
    if entry.group == INDEX:
        return _Seen(tuple(_check_index(dataset, head, entry, depth.deep)))
    return _look_at_columns(dataset, head, entry, depth.deep)


def _other_bytes(entry: FileEntry, sha256: str) -> Finding:
    return found("hash_differs", entry.path, f"sha256 {sha256[:12]}, not {entry.sha256[:12]}")


def _fetched(dataset: Dataset, entry: FileEntry, deep: bool) -> tuple[Path | BinaryIO, str]:
    """What to parse a column file from, and its checksum (the recorded one where it is not asked for)."""
    store = dataset.store
    if not deep:
        return store.readable(entry.path), entry.sha256
    if entry.bytes <= HELD:
        data = store.read(entry.path)
        stream = io.BytesIO(data)
        stream.name = store.where(entry.path)  # what messages call it
        return stream, sha256_hex(data)
    return store.readable(entry.path), store.sha256(entry.path)


def _look_at_columns(dataset: Dataset, head: Commit, entry: FileEntry, deep: bool) -> _Seen:
    file, sha256 = _fetched(dataset, entry, deep)
    if sha256 != entry.sha256:
        return _Seen((_other_bytes(entry, sha256),))
    findings: list[Finding] = []
    with parquet_file(file) as parquet:
        rows, schema = parquet.metadata.num_rows, schema_of(parquet.schema_arrow)
        if rows != entry.rows:
            findings.append(found("rows_differ", entry.path, f"{rows} rows, not {entry.rows}"))
        if changed := set(schema.items()) ^ set(head.schemas.get(entry.group, {}).items()):
            detail = f"columns {sorted({name for name, _ in changed})}"
            findings.append(found("schema_differs", entry.path, detail))
        source = head.by_place.get((SOURCE, entry.shard))
        aligned = source and (entry.rows, entry.keys_sha256) == (source.rows, source.keys_sha256)
        if not aligned and not entry.group.startswith(REJECTS):
            detail = f"its keys are not those of source, shard {entry.shard}"
            findings.append(found("keys_misaligned", entry.path, detail))
        if not deep and entry.group != SOURCE:
            return _Seen(tuple(findings))
        table = parquet.read(columns=["key", "source"] if entry.group == SOURCE else ["key"], use_threads=False)
    if column_sha256(table["key"]) != entry.keys_sha256:
        findings.append(found("keys_differ", entry.path, "its key column does not have the recorded hash"))
    if entry.group != SOURCE:
        return _Seen(tuple(findings))
    counts = {str(one["values"]): int(one["counts"]) for one in table["source"].value_counts().to_pylist()}
    try:
        return _Seen(tuple(findings), words(table["key"]), counts)
    except HarmonError as problem:
        return _Seen((*findings, found("keys_differ", entry.path, str(problem))), None, counts)


def _check_index(dataset: Dataset, head: Commit, entry: FileEntry, deep: bool) -> Iterator[Finding]:
    data = dataset.store.read(entry.path)
    tar = head.by_place.get((IMAGES, entry.shard))
    if deep and (sha256 := sha256_hex(data)) != entry.sha256:
        yield _other_bytes(entry, sha256)
    elif tar is None:
        yield found("index_differs", entry.path, "it has no archive")
    else:
        offsets = np.frombuffer(data, dtype="<u8", count=len(data) // 8)
        if len(data) % 8 or len(offsets) != tar.rows + 1 or int(offsets[-1]) + len(END) != tar.bytes:
            yield found("index_differs", entry.path, f"it does not fit {tar.path} with {tar.rows} images")


def _check_images(dataset: Dataset, head: Commit, entry: FileEntry, depth: Depth) -> Iterator[Finding]:
    """Deep: the archive alone, against its index and against the rows of source; then pictures decoded."""
    with dataset.store.open(entry.path) as stream:
        archive = read_archive(stream, entry.path)
    if archive.sha256 != entry.sha256:
        yield _other_bytes(entry, archive.sha256)
        return
    if archive.problem:
        yield found("members_differ", entry.path, archive.problem)
        return
    offsets, keys = [offset for offset, _ in archive.samples], [key for _, key in archive.samples]
    as_recorded = keys_sha256(keys) == entry.keys_sha256 and len(keys) == entry.rows
    if not as_recorded:
        yield found("keys_differ", entry.path, "its members' keys do not have the recorded hash")
    index = head.by_place.get((INDEX, entry.shard))
    if index is None or not dataset.store.exists(index.path):
        yield found("index_differs", entry.path, "it has no index")
    elif np.frombuffer(dataset.store.read(index.path), dtype="<u8")[:-1].tolist() != offsets:
        yield found("index_differs", index.path, f"its offsets are not those of the samples in {entry.path}")
    source = head.by_place.get((SOURCE, entry.shard))
    if source is None or not dataset.store.exists(source.path):
        return  # reported for the source file itself
    if not (as_recorded and source.keys_sha256 == entry.keys_sha256):  # equal: each row has its member, in order
        yield from _check_members(dataset, entry, keys, source)
    if depth.decode:
        yield from check_pictures(dataset, entry, archive.samples, source, depth.decode)


def _check_members(dataset: Dataset, entry: FileEntry, keys: Sequence[str], source: FileEntry) -> Iterator[Finding]:
    """The members of an archive, by their keys, against the rows of source: in the same order, none that lacks one."""
    rows = read_columns(dataset.store.readable(source.path), ["key", "task"])
    tasks = dict(zip(rows["key"].to_pylist(), rows["task"].to_pylist()))
    members = set(keys)
    if [key for key in tasks if key in members] != keys:
        yield found("members_differ", entry.path, "its members are not rows of source in the same order")
    bare = [key for key, task in tasks.items() if task != "text" and key not in members]
    if bare:
        yield found("members_differ", entry.path, f"{len(bare)} rows have no image, first {bare[0]}")


def check_reasons(dataset: Dataset, commits: Sequence[Commit]) -> Iterator[Finding]:
    """Deep: the reasons of rejects and of failed rows, in the files that each step wrote, are those it counted."""
    for commit in commits:
        own = written_by(commit)
        try:
            counted = {"rejected": (count_rejected(dataset, commit, own), commit.rejected)}
            if (failed := count_failed(dataset, commit, own)) is not None:
                counted["failed"] = (failed, commit.failed)
        except DAMAGE:
            continue  # unreadable: check_files reports it
        for word, (there, told) in counted.items():
            if there != told:
                detail = f"step {commit.step} counted {dict(told)} {word}, its files say {dict(there)}"
                yield found("reasons_differ", manifest_path(commit.number), detail)


def count_rejected(dataset: Dataset, commit: Commit, own: Sequence[FileEntry]) -> Mapping[str, int]:
    """Rows by reason that the commit's step turned away, in the files `own` of it; the rejects of other steps, which
    forgetting writes anew, are not counted again."""
    rejects = rejects_group(commit.step, commit.step_key)
    files = [dataset.store.readable(entry.path) for entry in own if entry.group == rejects and entry.rows]
    return Counter(reason for file in files for reason in read_columns(file, ["reason"]).column(0).to_pylist())


def count_failed(dataset: Dataset, commit: Commit, own: Sequence[FileEntry]) -> Mapping[str, int] | None:
    """Reasons of the failed rows, each once, as ShardOutput counts them; None where the files do not say.

    A step that makes shards rejects and fails nothing; one without `status` has told its counts itself.
    """
    if any(entry.group == SOURCE for entry in own):
        return None
    saying: dict[int, list[FileEntry]] = {entry.shard: [] for entry in own}
    for entry in own:  # groups of a shard in alphabetical order
        if not is_volatile(entry.group) and "status" in commit.schemas.get(entry.group, {}):
            saying[entry.shard].append(entry)
    if not saying or not all(saying.values()):
        return None
    reasons: Counter[str] = Counter()
    for entries in saying.values():  # one shard's failures are held at a time
        failures: dict[str, str] = {}
        for entry in entries:
            rows = read_columns(dataset.store.readable(entry.path), ["key", "status", "reason"]).to_pylist()
            failures |= {row["key"]: row["reason"] for row in rows if row["status"] != "ok"}
        reasons.update(failures.values())
    return reasons
