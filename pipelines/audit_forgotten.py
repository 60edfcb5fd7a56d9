"""Audit of what was forgotten: the files that held it are gone, and it has not come back."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException

from pipelines.columns import read_columns
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.manifest import FORGET, SOURCE, Commit, manifest_path
from pipelines.tombstones import tombstoned_files, tombstones_of


def check_forgotten(dataset: Dataset, commits: Sequence[Commit], sizes: Mapping[str, int | None]) -> Iterator[Finding]:
    """Tombstoned files that still stand, and rows of the newest commit whose key is in a tombstone.

    `sizes` is what stands in the folder.
    """
    keys: set[str] = set()
    for commit in commits:
        if commit.step != FORGET:
            continue
        try:
            keys |= tombstones_of(commit).keys
            files = [path for path in tombstoned_files(commit) if path in sizes]
        except HarmonError as problem:
            yield found("manifest_altered", manifest_path(commit.number), str(problem))
            continue
        for path in files:
            yield found("forgotten_file", path, f"commit {commit.number} took it away")
    if not keys:
        return
    gone = pa.array(sorted(keys), pa.string())
    for entry in commits[-1].files:
        if entry.group != SOURCE:
            continue
        try:
            column = read_columns(dataset.store.readable(entry.path), ["key"]).column("key")
            back = column.filter(pc.is_in(column, value_set=gone)).to_pylist()
        except (HarmonError, ArrowException, OSError, ValueError):
            continue  # unreadable: check_files reports it
        if back:
            yield found("forgotten_row", entry.path, f"{len(back)} forgotten samples are in it, first {min(back)}")
