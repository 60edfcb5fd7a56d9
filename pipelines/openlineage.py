"""A dataset's commits as OpenLineage run events (https://openlineage.io/spec/2-0-2/OpenLineage.json).

Each commit is a run of its step: one START and one COMPLETE event at the times that the manifest records. The
run's id is made from the commit's content hash, so the same commit has the same id in every export.
"""

import importlib.metadata
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import SOURCE, Commit, InputEntry, manifest_path

SPEC = "https://openlineage.io/spec"
RUN_EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACETS = {
    "schema": "1-2-0/SchemaDatasetFacet",
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
}
OWN = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunFacet"  # of our own facet: the base that every run facet satisfies
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:harmon:commit")


def openlineage(dataset: Dataset) -> list[dict[str, Any]]:
    """Events of every commit of `dataset`, oldest first.

    Datasets are named by their folder in the namespace `harmon`, as manifests speak of them. Raises HarmonError
    for a dataset without a commit.
    """
    commits = dataset.commits()
    if not commits:
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    return [event for commit in commits for event in _events(dataset.name, commit)]


def _events(name: str, commit: Commit) -> list[dict[str, Any]]:
    shared = {
        "run": {"runId": _run_id(name, commit), "facets": {"harmon_step": _step_facet(commit)}},
        "job": {"namespace": "harmon", "name": f"{name}.{commit.step}"},
        "inputs": [_input(entry) for entry in commit.inputs],
        "producer": _producer(),
        "schemaURL": RUN_EVENT,
    }
    start = {"eventType": "START", "eventTime": _time(commit, "started_at"), **shared, "outputs": []}
    complete = {"eventType": "COMPLETE", "eventTime": _time(commit, "finished_at"), **shared}
    return [start, complete | {"outputs": [_output(name, commit)]}]


def _run_id(name: str, commit: Commit) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{name}\n{commit.number}\n{commit.content_hash}"))


def _step_facet(commit: Commit) -> dict[str, Any]:
    """What the manifest says of the step, in a facet of our own. Tombstones are told by their number alone."""
    return _facet(
        OWN,
        {
            "step": commit.step,
            "version": commit.version,
            "stepKey": commit.step_key,
            "configurationSha256": sha256_hex(canonical_json(commit.configuration)),
            "rowsIn": commit.rows_in,
            "rowsOut": commit.rows_out,
            "rejected": dict(commit.rejected),
            "failed": dict(commit.failed),
        },
    )


def _input(entry: InputEntry) -> dict[str, Any]:
    return {
        "namespace": "harmon",
        "name": entry.dataset,
        "facets": {"version": _standard("version", {"datasetVersion": _version(entry.commit, entry.content_hash)})},
    }


def _output(name: str, commit: Commit) -> dict[str, Any]:
    files = commit.files
    statistics = {
        "rowCount": sum(entry.rows for entry in files if entry.group == SOURCE),
        "size": sum(entry.bytes for entry in files),
        "fileCount": len(files),
    }
    return {
        "namespace": "harmon",
        "name": name,
        "facets": {
            "version": _standard("version", {"datasetVersion": _version(commit.number, commit.content_hash)}),
            "schema": _standard("schema", {"fields": _fields(commit.schemas)}),
        },
        "outputFacets": {"outputStatistics": _standard("outputStatistics", statistics)},
    }


def _fields(schemas: Mapping[str, Mapping[str, str]]) -> Sequence[dict[str, Any]]:
    """Groups as structures of their columns."""
    return [
        {"name": group, "type": "struct", "fields": [{"name": name, "type": kind} for name, kind in columns.items()]}
        for group, columns in sorted(schemas.items())
    ]


def _version(number: int, content_hash: str) -> str:
    return f"{number}:{content_hash}"


def _standard(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    version, kind = FACETS[name].split("/")
    return _facet(f"{SPEC}/facets/{version}/{kind}.json#/$defs/{kind}", content)


def _facet(schema: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"_producer": _producer(), "_schemaURL": schema, **content}


def _producer() -> str:
    return f"urn:harmon:{importlib.metadata.version('harmon')}"


def _time(commit: Commit, name: str) -> str:
    value = commit.context.get(name)
    if not isinstance(value, str):
        raise HarmonError(f"{manifest_path(commit.number)} records no {name}; an event needs the time, so none is made")
    return value
