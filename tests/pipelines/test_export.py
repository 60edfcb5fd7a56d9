"""Exports: other tools' own readers accept them, and they say what the manifests say."""

import json
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest
from openlineage_schema import problems
from small_datasets import SHARDS, source_row, write_all

from pipelines.croissant import croissant
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.forget import forget
from pipelines.openlineage import openlineage
from pipelines.request import Request
from tests.parts import need


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = write_all(tmp_path_factory.mktemp("data") / "toys")
    forget(dataset, Request(urls=frozenset(["http://secret.example/x"]), keys=frozenset([source_row(1, 2)["key"]])))
    return dataset


def test_mlcroissant_accepts_the_description_and_reads_every_record(toys: Dataset, tmp_path: Path) -> None:
    need(bool(find_spec("mlcroissant")), "mlcroissant is not installed; run `make env`")
    import mlcroissant

    file = toys.root / "croissant.json"
    file.write_text(json.dumps(croissant(toys)))
    try:
        described = mlcroissant.Dataset(file)  # raises on any error
        assert not described.metadata.ctx.issues.errors
        rows = list(described.records("source/records"))
        scores = list(described.records("score.length/records"))
    finally:
        file.unlink()
    keys = [row["source/records/key"].decode() for row in rows]
    assert sorted(keys) == sorted(toys.whole_table("source").column("key").to_pylist())  # files come by path
    assert len(scores) == toys.total_rows and isinstance(scores[0]["score.length/records/score"], float)


def test_a_croissant_lists_every_file_of_the_newest_commit_and_invents_nothing(toys: Dataset) -> None:
    document = croissant(toys)
    head = toys.head
    assert head is not None
    files = {one["contentUrl"]: one for one in document["distribution"] if one["@type"] == "cr:FileObject"}
    assert {(path, one["sha256"], one["contentSize"]) for path, one in files.items()} == {
        (entry.path, entry.sha256, f"{entry.bytes} B") for entry in head.files
    }
    assert document["license"] == ["CC0-1.0"] and head.content_hash in document["identifier"]
    assert not {"url", "creator", "datePublished", "citeAs"} & document.keys()
    assert "download.telemetry/records" not in {one["@id"] for one in document["recordSet"]}


def test_openlineage_reads_every_event(toys: Dataset) -> None:
    """The classes are generated from the specification; they refuse wrong ids, times and unknown fields."""
    need(bool(find_spec("openlineage")), "openlineage-python is not installed; run `make env`")
    from openlineage.client import event_v2, facet_v2

    events = openlineage(toys)
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"] * 3
    for event in events:
        assert event["schemaURL"].endswith("OpenLineage.json#/$defs/RunEvent")
        facets = {**event["run"]["facets"]}
        assert all({"_producer", "_schemaURL"} <= facet.keys() for facet in facets.values())
        for output in event["outputs"]:
            schema, version = output["facets"]["schema"], output["facets"]["version"]
            fields = [facet_v2.schema_dataset.SchemaDatasetFacetFields(**field) for field in schema["fields"]]
            made = facet_v2.schema_dataset.SchemaDatasetFacet(fields=fields)
            assert made._schemaURL == schema["_schemaURL"]
            assert facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet("x")._schemaURL == version["_schemaURL"]
            counted = {k: v for k, v in output["outputFacets"]["outputStatistics"].items() if k[0] != "_"}
            known = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(**counted)
            assert known._schemaURL == output["outputFacets"]["outputStatistics"]["_schemaURL"]
        event_v2.RunEvent(
            eventType=event_v2.RunState[event["eventType"]],
            eventTime=event["eventTime"],
            run=event_v2.Run(**event["run"]),
            job=event_v2.Job(**event["job"]),
            inputs=[event_v2.InputDataset(**one) for one in event["inputs"]],
            outputs=[event_v2.OutputDataset(**one) for one in event["outputs"]],
            producer=event["producer"],
        )


def test_every_event_has_the_form_that_openlineage_asks_for(toys: Dataset) -> None:
    events = openlineage(toys)
    assert [problems(event) for event in json.loads(json.dumps(events))] == [[]] * len(events)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("eventTime", "yesterday"),
        ("eventTime", "2026-11-22T05:00:00"),  # of no time zone
        ("eventType", "DONE"),
        ("producer", "harmon"),
        ("schemaURL", None),
        ("run", None),
        ("run.runId", "7"),
        ("run.facets.harmon_step._schemaURL", None),
        ("job.name", 7),
        ("inputs.0.name", None),
        ("inputs.0.facets.version.datasetVersion", None),
        ("outputs.0.namespace", None),
        ("outputs.0.facets.schema._producer", None),
        ("outputs.0.facets.schema.fields.0.fields.0.name", None),
        ("outputs.0.outputFacets.outputStatistics.rowCount", "7"),
    ],
)
def test_the_check_of_that_form_refuses_what_breaks_it(toys: Dataset, where: str, value: object) -> None:
    event = json.loads(json.dumps(openlineage(toys)[3]))
    *steps, name = where.split(".")
    place = event
    for step in steps:
        place = place[int(step) if step.isdecimal() else step]
    if value is None:
        del place[name]
    else:
        place[name] = value
    (problem,) = problems(event)
    assert problem.startswith(".".join(steps) if value is None else where)


def test_events_say_what_the_manifests_say_the_same_each_time(toys: Dataset) -> None:
    events = openlineage(toys)
    assert events == openlineage(Dataset(toys.root))
    assert len({uuid.UUID(event["run"]["runId"]) for event in events}) == 3
    start, complete = events[2:4]
    score = toys.commit(1)
    assert (start["eventTime"], complete["eventTime"]) == (score.context["started_at"], score.context["finished_at"])
    assert start["inputs"][0]["facets"]["version"]["datasetVersion"] == f"0:{toys.commit(0).content_hash}"
    statistics = complete["outputs"][0]["outputFacets"]["outputStatistics"]
    assert statistics["rowCount"] == SHARDS * 5 and statistics["fileCount"] == len(score.files)
    assert "secret.example" not in json.dumps(events) and source_row(1, 2)["key"] not in json.dumps(events)


def test_a_folder_without_commits_has_nothing_to_export(tmp_path: Path) -> None:
    for export in (croissant, openlineage):
        with pytest.raises(HarmonError, match="there is no dataset"):
            export(Dataset(tmp_path / "none"))
