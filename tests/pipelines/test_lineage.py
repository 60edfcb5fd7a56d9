"""Lineage: what was made from what, as the manifests of one folder say."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from small_datasets import source_row, write_all

from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.lineage import derived, lineage, neighbours, upstream
from pipelines.manifest import SOURCE, manifest_path
from pipelines.show.lineage_chart import draw
from pipelines.steps import Reads, Step, StepRun


def made_of(root: Path, *datasets: Dataset) -> Dataset:
    dataset = Dataset(root)
    run = StepRun(dataset, Step("select", 1, {"to": root.name}, tuple(Reads(one, (SOURCE,)) for one in datasets)))
    run.pending([0])
    out = run.shard(0)
    out.columns(SOURCE, pa.Table.from_pylist([source_row(0, 4)], SOURCE_SCHEMA))
    out.finish(1)
    run.commit({"toys": {"licence": "CC0-1.0", "terms": "open"}})
    return dataset


@pytest.fixture
def family(tmp_path: Path) -> dict[str, Dataset]:
    """a and b make c, c makes d; a makes e; f stands alone."""
    made = {name: write_all(tmp_path / name) for name in "abf"}
    made["c"] = made_of(tmp_path / "c", made["a"], made["b"])
    made["d"] = made_of(tmp_path / "d", made["c"])
    made["e"] = made_of(tmp_path / "e", made["a"])
    return made


def test_relatives_are_found_in_both_directions_sources_first(family: dict[str, Dataset]) -> None:
    assert [one.name for one in derived(family["a"])] == ["c", "e", "d"]
    assert [one.name for one in upstream(family["d"])] == ["a", "b", "c"]
    assert [one.name for one in neighbours(family["f"])] == ["a", "b", "c", "d", "e"]
    assert derived(family["f"]) == upstream(family["f"]) == []


def test_the_graph_names_exact_commits_and_draws_each(family: dict[str, Dataset]) -> None:
    graph = lineage(family["c"])
    assert graph.datasets == ("a", "b", "c", "d")
    assert (("a", 1), ("c", 0)) in graph.edges and (("a", 0), ("a", 1)) in graph.edges
    drawn = draw(graph, "c")
    assert drawn.count('class="knot') == len(graph.vertices) == 6 and drawn.count("<path") == len(graph.edges)
    sibling = lineage(family["e"])
    assert [vertex.dataset for vertex in sibling.vertices] == ["a", "a", "e"]


def test_a_source_that_is_not_there_is_shown_as_such(family: dict[str, Dataset]) -> None:
    family["a"].root.rename(family["a"].root.parent.parent / "away")
    graph = lineage(family["c"])
    assert [vertex.commit for vertex in graph.vertices if vertex.dataset == "a"] == [None]
    assert "not in this folder" in draw(graph, "c")


def test_a_dataset_may_read_what_was_made_from_it_but_no_commit_comes_from_itself(tmp_path: Path) -> None:
    first = made_of(tmp_path / "x")
    second = made_of(tmp_path / "y", first)
    run = StepRun(first, Step("late", 1, {}, (Reads(second, (SOURCE,)),)))
    run.pending([0])
    out = run.shard(0)
    out.columns("late", pa.table({"key": first.table(SOURCE, 0).column("key")}))
    out.finish(1)
    run.commit()
    assert [one.name for one in derived(first)] == [one.name for one in upstream(first)] == ["y"]
    drawn = draw(lineage(first), "x")
    assert drawn.count("<path") == 3
    forged = second.store.local(manifest_path(0))
    manifest = json.loads(forged.read_bytes())
    manifest["inputs"][0]["commit"] = 1
    forged.write_text(json.dumps(manifest))
    with pytest.raises(HarmonError, match="nothing is made from itself"):
        lineage(Dataset(first.root))
