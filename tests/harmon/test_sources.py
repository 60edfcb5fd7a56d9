"""The loss and the epochs of each entry of the mixture, on the lines of metrics."""

import math
from collections import defaultdict

import pyarrow as pa
import pytest
import torch
from miniature import make_job, small_stage

from flows.gate import Gate, measured
from harmon.model.harmon import Harmon
from harmon.text import ChatText
from harmon.training.data import StageData
from harmon.training.job import metrics_lines
from harmon.training.loop import loss_sum, train
from harmon.training.micro import split
from harmon.training.mixture import Mixture, MixtureSource, blocks_of_step, cursors
from harmon.training.rows import StageRows
from harmon.training.sources import SourceLosses
from harmon.training.stage import TASKS
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("run"), small_stage(steps=2), log_every=2, dtype="float64")


def test_losses_of_entries_are_those_of_their_rows_and_skipped_steps_do_not_count(job):
    torch.manual_seed(0)
    model = Harmon(job.model).double()
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    sources = SourceLosses(job.mixture, list(TASKS), CPU)
    expected: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for step in (0, 1, 2):
        for block in blocks_of_step(job.stage, step):
            batch = data.batch(block, 0, 1)
            for part in split(batch, 2):
                sources.add(block.task, part, loss_sum(model, part, torch.float64, CPU).per_sample)
            if step == 2:
                continue
            for number, alone in zip(block.share(0, 1), split(batch, block.rows)):
                name = job.mixture.lines(block.task)[data.rows.row(block.task, number).line]
                expected[block.task, name][0] += loss_sum(model, alone, torch.float64, CPU).total.item()
                expected[block.task, name][1] += alone.count
        sources.end_step(torch.tensor(float(step == 2)))
    told = sources.told()
    assert {(task, name) for task, names in told.items() for name in names} == set(expected)
    assert len(expected) == 5
    for (task, name), (total, count) in expected.items():
        assert told[task][name] == pytest.approx(total / count, rel=1e-5)  # per_sample is float32 at least
    assert sources.told() == {}
    data.close()


def test_a_line_of_metrics_tells_the_loss_and_the_epochs_of_each_source(job):
    folder = train(job)
    (line,) = metrics_lines(folder)
    assert set(line["source_loss"]["image2text"]) == {"corpus:conversation", "corpus:caption"}
    losses = line["source_loss"]["text2image"].values()
    assert min(losses) < line["loss"]["text2image"] < max(losses)
    assert line["source_epochs"]["text"] == {"corpus": cursors(job.stage, 2)["text"] / 12}
    assert math.isfinite(measured(Gate(metric="source_loss/text2image/corpus:caption", at_most=1), folder))


def test_entries_of_one_name_are_told_apart():
    def entry(**what: object) -> MixtureSource:
        return MixtureSource(**{"dataset": "s3://bucket/corpus", "rows": "image2text", "text": "caption"} | what)

    mixture = Mixture(
        image2text=(
            entry(), entry(text="conversation"), entry(sources=("a", "b", "c")), entry(sources=("d",)),
            entry(sources=("e",)), entry(sources=("e",)),
        )
    )  # fmt: skip
    names = ["corpus:caption", "corpus:conversation", "a+2", "d", "e:caption#4", "e:caption#5"]
    assert mixture.names("image2text") == names


def test_each_source_of_an_entry_has_a_loss_of_its_own(tmp_path):
    dataset = Dataset(tmp_path / "two")
    run = StepRun(dataset, Step("make", 1, {}, ()))
    (shard,) = run.pending([0])
    rows = [
        dict.fromkeys(SOURCE_SCHEMA.names)
        | {"key": f"{row:032x}", "task": "text", "source": "abc"[row % 3], "caption": "x"}
        | {"conversations": [{"role": "user", "text": "Hello?"}, {"role": "assistant", "text": "abc"[row % 3]}]}
        for row in range(30)
    ]
    output = run.shard(shard)
    output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
    output.finish(len(rows))
    run.commit()

    def entry(*sources: str) -> MixtureSource:
        return MixtureSource(dataset=str(dataset.root), rows="text", text="conversation", sources=sources)

    mixture = Mixture(text=(entry("b"), entry("c", "a"), entry("a", "b")))
    assert mixture.lines("text") == [
        "b:conversation#0",
        "c",
        "a:conversation#1",
        "a:conversation#2",
        "b:conversation#2",
    ]
    stage = small_stage(ratio={"image2text": 0, "text2image": 0, "text": 1})
    found = StageRows(stage, mixture, None)
    for number in range(60):
        row = found.row("text", number)
        assert mixture.lines("text")[row.line].partition(":")[0] == row.text[1]["text"]
        assert row.line in ({0}, {1, 2}, {3, 4})[row.entry]
    found.close()


def test_the_processes_and_threads_of_the_data_end_with_the_training(job, monkeypatch, tmp_path):
    closed = []
    close = StageData.close
    monkeypatch.setattr(StageData, "close", lambda data: closed.append(data) or close(data))
    train(job.model_copy(update={"runs": str(tmp_path)}))
    assert len(closed) == 1
