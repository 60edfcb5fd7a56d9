"""What forgetting leaves behind: which samples may not come back, and which files had to go.

A commit of the step `forget` states both in its configuration: `keys`, `urls_sha256` and `sha256` name the
samples (links only by their hash, so that a tombstone does not publish what it hides), `files` the files that
it took away, `asked` the digest of what was asked for before more keys were found. A tombstone holds for every
dataset in the same folder.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.columns import parquet_file
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.identity import Step
from pipelines.lineage import neighbours
from pipelines.manifest import FORGET, Commit, group_hash, manifest_path

BATCH = 1 << 16  # rows of source that are in memory at a time while they are compared
REASON = "forgotten"  # of the rows that leave by forgetting, or that a tombstone keeps out


@dataclass(frozen=True)
class Tombstones:
    """Samples that may not come back: by key, by the SHA-256 of their link, by the SHA-256 of their bytes as
    fetched."""

    keys: frozenset[str] = frozenset()
    urls_sha256: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(self.keys | other.keys, self.urls_sha256 | other.urls_sha256, self.sha256 | other.sha256)

    def __le__(self, other: "Tombstones") -> bool:
        return self.keys <= other.keys and self.urls_sha256 <= other.urls_sha256 and self.sha256 <= other.sha256

    @property
    def digest(self) -> str:
        """SHA-256 that equal sets of samples share."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, list[str]]:
        """As they stand in the configuration of a commit."""
        return {
            "keys": sorted(self.keys),
            "urls_sha256": sorted(self.urls_sha256),
            "sha256": sorted(self.sha256),
        }

    def bar_row(self, key: str, url: str | None) -> bool:
        """Whether a row may not come in, judged before anything is fetched for it."""
        return key in self.keys or (bool(self.urls_sha256) and url is not None and url_sha256(url) in self.urls_sha256)

    def bar_bytes(self, sha256: str) -> bool:
        """Whether a picture may not come in, judged by the SHA-256 of its bytes as fetched."""
        return sha256 in self.sha256


def barred_keys(dataset: Dataset, path: str, stones: Tombstones) -> Iterator[str]:
    """Keys of those rows of one file of source that may not be there, by key, link or bytes; BATCH rows in memory.

    Raises HarmonError, OSError, ValueError or ArrowException where the file cannot be read.
    """
    columns = ["key", *(["url"] if stones.urls_sha256 else []), *(["sha256"] if stones.sha256 else [])]
    keys, sums = (pa.array(sorted(values), pa.string()) for values in (stones.keys, stones.sha256))
    with parquet_file(dataset.store.readable(path)) as parquet:
        for batch in parquet.iter_batches(BATCH, columns=columns):
            barred = pc.is_in(batch["key"], value_set=keys)
            if stones.sha256:
                barred = pc.or_(barred, pc.is_in(batch["sha256"], value_set=sums))
            if stones.urls_sha256:
                urls = batch["url"].to_pylist()
                barred = pc.or_(barred, pa.array([stones.bar_row("", url) for url in urls], pa.bool_()))
            yield from batch["key"].filter(barred).to_pylist()


def url_sha256(url: str) -> str:
    """How a tombstone names a link: exactly this spelling of it."""
    return sha256_hex(url.encode("utf-8", "surrogatepass"))


def tombstones(dataset: Dataset) -> Tombstones:
    """Everything that the commits of a dataset say is forgotten."""
    return _united(tombstones_of(commit) for commit in forgettings(dataset))


def tombstones_beside(dataset: Dataset) -> Tombstones:
    """What is forgotten in a dataset or in one beside it. Raises HarmonError where a manifest there is damaged."""
    return _united(tombstones(one) for one in [dataset, *neighbours(dataset)])


def forgettings(dataset: Dataset) -> list[Commit]:
    """The commits that took samples away, oldest first."""
    return [commit for commit in dataset.commits() if commit.step == FORGET]


def tombstones_of(commit: Commit) -> Tombstones:
    """The samples that a commit of the step `forget` names."""
    return Tombstones(*(frozenset(_strings(commit, name)) for name in ("keys", "urls_sha256", "sha256")))


def tombstoned_files(commit: Commit) -> list[str]:
    """Paths of the files that a commit of the step `forget` took away."""
    return _strings(commit, "files")


def configuration(asked: Tombstones, stones: Tombstones, files: Iterable[str]) -> dict[str, Any]:
    """The configuration of a commit that was asked to forget `asked`, forgets `stones` and takes `files` away."""
    return {**stones.to_json(), "asked": asked.digest, "files": sorted(files)}


def standing(dataset: Dataset, step: Step) -> Commit | None:
    """The commit that makes `step` done in `dataset`, or None.

    It is the commit of the step's key; or one of the same work on the same data as they were before samples
    were forgotten, if `dataset` has forgotten all of those too: then its result is what the step would give.
    """
    if (commit := dataset.commit_of(step.key)) is not None:
        return commit
    if not any(forgettings(reads.dataset) for reads in step.reads):
        return None
    return next((commit for commit in reversed(dataset.commits()) if _did(commit, step, dataset)), None)


def _did(commit: Commit, step: Step, dataset: Dataset) -> bool:
    if (commit.step, commit.version, len(commit.inputs)) != (step.name, step.version, len(step.reads)):
        return False
    if canonical_json(commit.configuration) != canonical_json(step.configuration):
        return False
    own = tombstones(dataset)
    for entry, reads in zip(commit.inputs, step.reads, strict=True):
        if (entry.dataset, set(entry.groups)) != (reads.dataset.name, set(reads.groups)):
            return False
        if not tombstones(reads.dataset) <= own:
            return False
        if any(read not in _hashes(reads.dataset, group) for group, read in entry.groups.items()):
            return False
    return True


def _hashes(dataset: Dataset, group: str) -> Iterator[str]:
    """Hashes of a group, newest first, back to where something else than forgetting changed it."""
    newer: Commit | None = None
    for commit in reversed(dataset.commits()):
        there = group_hash(group, [entry for entry in commit.files if entry.group == group])
        if newer is not None and newer.step != FORGET:
            before = [entry for entry in newer.files if entry.group == group]
            if group_hash(group, before) != there:
                return
        yield there
        newer = commit


def _united(parts: Iterable[Tombstones]) -> Tombstones:
    whole = Tombstones()
    for part in parts:
        whole |= part
    return whole


def _strings(commit: Commit, name: str) -> list[str]:
    value = commit.configuration.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise HarmonError(
            f"{manifest_path(commit.number)} forgets samples and has no list of {name!r}; restore it from a copy"
        )
    return value
