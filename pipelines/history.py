"""A dataset's history for a person or a program: each commit with what it did, when, by whom and where."""

from collections.abc import Iterator
from typing import Any

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Commit, written_by


def history(dataset: Dataset) -> list[dict[str, Any]]:
    """One record a commit, oldest first; nothing is checked here. Raises HarmonError where there is no commit."""
    commits = dataset.commits()
    if not commits:
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    return [_record(commit) for commit in commits]


def _record(commit: Commit) -> dict[str, Any]:
    own = written_by(commit)
    context = commit.context
    return {
        "number": commit.number,
        "step": commit.step,
        "version": commit.version,
        "step_key": commit.step_key,
        "configuration_sha256": commit.configuration_sha256,
        "content_hash": commit.content_hash,
        "inputs": [
            {"dataset": entry.dataset, "commit": entry.commit, "content_hash": entry.content_hash}
            for entry in commit.inputs
        ],
        "rows_in": commit.rows_in,
        "rows_out": commit.rows_out,
        "rejected": dict(commit.rejected),
        "failed": dict(commit.failed),
        "files": len(own),
        "bytes": sum(entry.bytes for entry in own),
        "seconds": context.get("seconds"),
        "started_at": context.get("started_at"),
        "finished_at": context.get("finished_at"),
        "user": context.get("user"),
        "host": context.get("host"),
        "software": context.get("software", {}),
    }


def history_lines(name: str, records: list[dict[str, Any]]) -> Iterator[str]:
    """The history for a person: two lines a commit."""
    yield f"{name}: {len(records)} commits"
    for one in records:
        lost = sum(one["rejected"].values()) + sum(one["failed"].values())
        read = ", ".join(f"{entry['dataset']}@{entry['commit']}" for entry in one["inputs"])
        yield (
            f"  {one['number']:>3} {one['step']} v{one['version']}, configuration {one['configuration_sha256'][:8]}"
            + (f", from {read}" if read else "")
        )
        seconds = "" if one["seconds"] is None else f" in {one['seconds']:,.1f} s of work"
        yield (
            f"      {one['rows_in']:,} in, {one['rows_out']:,} out, {lost:,} rejected or failed; "
            f"{one['files']} files, {one['bytes'] / 1e6:,.1f} MB{seconds}; "
            f"{one['finished_at']} by {one['user']} on {one['host']}"
        )
