"""Rewriting is about dense captions, wherever the catalogue says that they are."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import catalogue
from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun
from recaption.choice import Choice
from recaption.dense import is_dense
from recaption.language_model import served_model
from recaption.prompt import load_prompt
from recaption.recaption import Recaption

REWRITTEN = [name for name in catalogue.names() if catalogue.source(name).captions.rewrite]
REWRITE = Recaption(load_prompt("rewrite-v1"), served_model("m"))


def written(root: Path, source: str, tasks: list[str]) -> Dataset:
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {"source": source}))
    named = [{"source": source, "row_id": str(n), "task": task, "caption": "A dog."} for n, task in enumerate(tasks)]
    rows = [{"key": sample_key(source, str(row["row_id"]))} | row for row in named]
    for number in run.pending([0]):
        output = run.shard(number)
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(rows))
    run.commit({source: {"licence": "CC0-1.0", "terms": "open"}})
    return dataset


@pytest.mark.parametrize("name", REWRITTEN)
def test_every_source_whose_captions_the_recipe_rewrites_is_rewritten(name: str, tmp_path: Path) -> None:
    task = catalogue.source(name).task
    rows = Choice(written(tmp_path / name, name, [task, "text"]), REWRITE).shard(0)
    assert [work is not None for work in rows.works] == [True, False]


def test_the_papers_sources_are_among_them() -> None:
    assert {"pd12m", "pixelprose", "densefusion-1m", "sharegpt4v-pt", "llava-recap-cc3m"} <= set(REWRITTEN)


@pytest.mark.parametrize("name", ["imagenet-1k", "journeydb", "llava-onevision", "infinity-mm", "megalith-10m"])
def test_short_captions_class_names_and_questions_are_not_rewritten(name: str) -> None:
    assert not any(is_dense(name, task) for task in ("image2text", "text2image", "text"))


def test_a_class_name_beside_dense_captions_is_not_rewritten() -> None:
    assert [is_dense("scenes", task) for task in ("image2text", "text2image", "text")] == [True, False, False]


def test_rows_of_a_source_that_the_catalogue_does_not_know_are_told_by_their_task() -> None:
    assert [is_dense("mine", task) for task in ("image2text", "text2image", "text")] == [True, False, False]
