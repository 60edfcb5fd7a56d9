"""Audit of what a dataset says of itself: commits and how they chain, receipts, counts, inputs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.manifest import (
    FORGET,
    SOURCE,
    Commit,
    FileEntry,
    InputEntry,
    Receipt,
    group_path,
    manifest_path,
    receipt_path,
    rejects_group,
    step_identity,
    step_path,
)

READERS = 16  # receipts read at a time: in S3 each takes tens of milliseconds, most of it waiting


def read_history(dataset: Dataset) -> tuple[list[Commit], list[Finding]]:
    """The commits that can be read, oldest first, and what is wrong with the rest or with the chain."""
    commits: list[Commit] = []
    findings: list[Finding] = []
    numbers = dataset.commit_numbers()
    for number in sorted(set(range(numbers[-1] + 1 if numbers else 0)) - set(numbers)):
        findings.append(found("manifest_missing", manifest_path(number), f"commit {number} is absent"))
    before: bytes | None = None
    for number in numbers:
        path = manifest_path(number)
        data = dataset.store.read(path)
        try:
            commit = Commit.from_bytes(data, path)
            findings += _check_link(path, number, commit, data, before)
            commits.append(commit)
        except HarmonError as problem:
            findings.append(found("manifest_unreadable", path, str(problem)))
        before = data
    return commits, findings


def _check_link(path: str, number: int, commit: Commit, data: bytes, before: bytes | None) -> Iterator[Finding]:
    if commit.number != number or commit.to_bytes() != data:
        yield found("manifest_altered", path, f"its bytes are not those that commit {commit.number} was written as")
    if commit.parent != (sha256_hex(before) if before is not None else None):
        yield found("chain_broken", path, f"its parent {str(commit.parent)[:12]} is not the commit before it")


def check_history(dataset: Dataset, commits: Sequence[Commit], sizes: Mapping[str, int | None]) -> Iterator[Finding]:
    """Everything that one commit has to satisfy, given the one before it; `sizes` is what stands in the folder."""
    standing: dict[tuple[str, int], FileEntry] = {}
    for commit in commits:
        path = manifest_path(commit.number)
        if sizes.get(path) is None:  # it could be changed from outside the dataset
            yield found("manifest_unreadable", path, "it is only a link")
        new = [entry for entry in commit.files if standing.get((entry.group, entry.shard)) != entry]
        yield from _check_files(path, commit, new, standing)
        identity = step_identity(
            commit.step, commit.version, commit.configuration, [entry.groups for entry in commit.inputs]
        )
        if sha256_hex(identity) != commit.step_key:
            yield found("step_key_differs", path, f"step {commit.step} would have the key {sha256_hex(identity)[:12]}")
        yield from _check_receipts(dataset, path, commit, new, identity, sizes)
        yield from _check_counts(path, commit, new)
        for entry in commit.inputs:
            yield from _check_input(dataset, path, commit, entry)
        standing = dict(commit.by_place)


def _check_files(
    path: str, commit: Commit, new: Sequence[FileEntry], standing: Mapping[tuple[str, int], FileEntry]
) -> Iterator[Finding]:
    if len(commit.by_place) != len(commit.files):
        yield found("manifest_altered", path, "it lists two files for the same group and shard")
    gone = [entry.path for place, entry in standing.items() if commit.by_place.get(place) != entry]
    if commit.step == FORGET and sorted(gone) == commit.configuration.get("files"):
        gone = [entry.path for place, entry in standing.items() if place not in commit.by_place]  # each has a successor
    if gone:
        yield found("file_dropped", path, f"{len(gone)} files of the commit before are not in it, first {gone[0]}")
    strayed = [entry for entry in new if entry.path != group_path(entry.group, commit.step_key, entry.shard)]
    if strayed:
        yield found("manifest_altered", path, f"step {commit.step} does not write {strayed[0].path}")


def _check_receipts(
    dataset: Dataset,
    path: str,
    commit: Commit,
    new: Sequence[FileEntry],
    identity: bytes,
    sizes: Mapping[str, int | None],
) -> Iterator[Finding]:
    named = step_path(commit.step_key)
    if sizes.get(named) is None:
        yield found("receipt_missing", named, f"the record of step {commit.step} is absent")
    elif dataset.store.read(named) != identity:
        yield found(
            "receipt_differs",
            named,
            f"it does not describe step {commit.step} as commit {commit.number} does",
        )
    receipts = []
    by_shard: dict[int, set[FileEntry]] = {}
    for entry in new:
        by_shard.setdefault(entry.shard, set()).add(entry)
    rows = {entry.shard: entry.rows for entry in commit.files if entry.group == SOURCE}
    standing = [shard for shard in sorted(by_shard) if sizes.get(receipt_path(commit.step_key, shard)) is not None]
    for shard in sorted(by_shard.keys() - set(standing)):
        where = receipt_path(commit.step_key, shard)
        yield found("receipt_missing", where, f"shard {shard} of commit {commit.number} has no receipt")
    with ThreadPoolExecutor(READERS) as pool:
        texts = pool.map(lambda shard: dataset.store.read(receipt_path(commit.step_key, shard)), standing)
        for shard, text in zip(standing, texts):
            where = receipt_path(commit.step_key, shard)
            try:
                receipt = Receipt.from_bytes(text, where)
            except HarmonError as problem:
                yield found("receipt_differs", where, str(problem))
                continue
            receipts.append(receipt)
            told = (receipt.step, receipt.step_key, receipt.shard)
            if set(receipt.files) != by_shard[shard] or told != (commit.step, commit.step_key, shard):
                yield found("receipt_differs", where, f"its files are not those of commit {commit.number}")
                continue
            groups = {entry.group for entry in receipt.files}
            schemas = {group: schema for group, schema in commit.schemas.items() if group in groups}
            if dict(receipt.schemas) != schemas:
                yield found("receipt_differs", where, f"its schemas are not those of commit {commit.number}")
            if imbalance := _imbalance(receipt, commit, receipt.files, rows.get(shard, 0)):
                yield found("receipt_differs", where, imbalance)
    if len(receipts) == len({entry.shard for entry in new}) and _sums(receipts) != _sums([commit]):
        yield found("receipt_differs", path, f"the receipts of step {commit.step} add up to other counts")


def _sums(parts: Iterable[Receipt | Commit]) -> list[dict[str, int]]:
    total: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for part in parts:
        total[0].update({"in": part.rows_in, "out": part.rows_out})
        total[1].update(part.rejected)
        total[2].update(part.failed)
    return [dict(+counts) for counts in total]


def _check_counts(path: str, commit: Commit, new: Sequence[FileEntry]) -> Iterator[Finding]:
    """Conservation: nothing is lost between the rows in, the rows out and the rows that have a reason."""
    shards = {entry.shard for entry in new}
    rows = sum(entry.rows for entry in commit.files if entry.group == SOURCE and entry.shard in shards)
    if problem := _imbalance(commit, commit, new, rows):
        yield found("counts_differ", path, problem)


def _imbalance(counted: Receipt | Commit, commit: Commit, files: Iterable[FileEntry], rows: int) -> str | None:
    """How the counts of a receipt, or of its whole commit, fail to balance over the files that were written for
    shards of so many rows; None where they balance."""
    rejected, failed = sum(counted.rejected.values()), sum(counted.failed.values())
    own, written, turned_away, makes_rows = rejects_group(commit.step, commit.step_key), 0, 0, False
    for entry in files:
        makes_rows |= entry.group == SOURCE
        written += entry.rows if entry.group == SOURCE else 0
        turned_away += entry.rows if entry.group == own else 0
    if makes_rows:
        balanced = counted.rows_in == counted.rows_out + rejected and not failed and counted.rows_out == written
    else:
        balanced = counted.rows_in == counted.rows_out + failed == rows
    if balanced and rejected == turned_away:
        return None
    counts = f"{counted.rows_in} in, {counted.rows_out} out, {rejected} rejected, {failed} failed"
    return f"step {commit.step}: {counts}; its files hold {written} rows and {turned_away} rejects"


def _check_input(dataset: Dataset, path: str, commit: Commit, entry: InputEntry) -> Iterator[Finding]:
    own = entry.dataset == dataset.name
    upstream = dataset if own else Dataset(dataset.root.absolute().parent / entry.dataset)
    if own and entry.commit >= commit.number:
        yield found("chain_broken", path, f"it says it read commit {entry.commit} of its own dataset")
        return
    try:
        known = upstream.commit(entry.commit)
    except HarmonError:
        if not own:  # an own commit that is absent or damaged has been reported already
            read = f"step {commit.step} read commit {entry.commit} of {entry.dataset}"
            yield found("upstream_unreachable", path, f"{read}, which is not at {upstream.root}")
        return
    if known.content_hash != entry.content_hash:
        detail = f"step {commit.step} read commit {entry.commit} of {entry.dataset} when it had other content"
        yield found("chain_broken" if own else "upstream_differs", path, detail)
