"""Audit of what was forgotten: the files that held it are gone, and it has not come back."""

from collections.abc import Iterator, Mapping, Sequence

from pyarrow import ArrowException

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.lineage import neighbours
from pipelines.manifest import FORGET, SOURCE, Commit, manifest_path
from pipelines.tombstones import Tombstones, barred_keys, tombstoned_files, tombstones, tombstones_of


def check_forgotten(dataset: Dataset, commits: Sequence[Commit], sizes: Mapping[str, int | None]) -> Iterator[Finding]:
    """Tombstoned files that still stand, and rows of the newest commit that a tombstone of the dataset or of one
    beside it bars, by key, link or bytes.

    `sizes` is what stands in the folder. Of a dataset beside it whose manifests cannot be read, a note tells.
    """
    stones = Tombstones()
    for commit in commits:
        if commit.step != FORGET:
            continue
        try:
            stones |= tombstones_of(commit)
            files = [path for path in tombstoned_files(commit) if path in sizes]
        except HarmonError as problem:
            yield found("manifest_altered", manifest_path(commit.number), str(problem))
            continue
        for path in files:
            yield found("forgotten_file", path, f"commit {commit.number} took it away")
    others: list[Dataset] = []
    try:
        others = neighbours(dataset) if commits else []
    except HarmonError as problem:
        yield found("upstream_unreachable", "..", f"the datasets beside this one cannot be told: {problem}")
    for other in others:
        try:
            stones |= tombstones(other)
        except HarmonError as problem:
            yield found("upstream_unreachable", f"../{other.name}", f"what it forgot cannot be told: {problem}")
    if stones == Tombstones():
        return
    for entry in commits[-1].files:
        if entry.group != SOURCE:
            continue
        try:
            back = list(barred_keys(dataset, entry.path, stones))
        except (HarmonError, ArrowException, OSError, ValueError, KeyError):
            continue  # unreadable, or without one of the columns: check_files reports it
        if back:
            yield found("forgotten_row", entry.path, f"{len(back)} forgotten samples are in it, first {min(back)}")
