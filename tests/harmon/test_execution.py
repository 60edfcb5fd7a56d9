"""Ways to run a stage that leave its result as it is, and the ones that are meant to change it."""

import gzip
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from miniature import make_job, small_stage
from safetensors.torch import load_file

from harmon.model.harmon import Harmon, LossSum
from harmon.text import ChatText
from harmon.training import loop, meter
from harmon.training.average import Average
from harmon.training.blank import blank_batch
from harmon.training.checkpoint import AVERAGE, MODEL, complete_checkpoints
from harmon.training.data import ChatBatch, StageData
from harmon.training.execution import Execution, GuardConfig
from harmon.training.job import TrainJob, training_key
from harmon.training.loop import final_weights, train
from harmon.training.micro import MicroBatches, parts_of, split
from harmon.training.mixture import Block
from harmon.training.optimiser import trained_parameters
from pipelines.errors import HarmonError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("run"), small_stage(steps=4), dtype="float64", checkpoint_every=2)


@pytest.fixture(scope="module")
def plain(job) -> Path:
    return train(job)


def at(job: TrainJob, folder: Path, **changes: object) -> TrainJob:
    return job.model_copy(update={"runs": str(folder), **changes})


def losses(folder: Path) -> list[dict]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", [{"micro_rows": 1}, {"recompute": "selective", "micro_rows": 3}, {"recompute": "full"}])
def test_micro_batches_and_recomputation_give_the_same_losses(job, plain, tmp_path, how):
    folder = train(at(job, tmp_path, execution=Execution(**how)))
    assert folder.name == plain.name  # how it runs is no part of what it is
    for ours, theirs in zip(losses(folder), losses(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(job, plain, tmp_path):
    folder = train(at(job, tmp_path, execution=Execution(compile=True, recompute="full")))
    for ours, theirs in zip(losses(folder), losses(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 9))
def test_no_micro_batch_exceeds_its_rows_for_any_number_of_workers(rows: int, world: int, limit: int):
    block = Block("text", 0, rows)
    parts = parts_of(block, world, limit)
    for rank in range(world):
        share = len(block.share(rank, world))
        ids = torch.zeros(share, 2, dtype=torch.int64)
        pieces = split(ChatBatch(None, ids, ids), parts) if share else []
        assert sum(len(piece.input_ids) for piece in pieces) == share
        assert all(0 < len(piece.input_ids) <= limit for piece in pieces) and len(pieces) <= parts


def test_workers_with_fewer_rows_make_as_many_passes_by_blank_parts_without_weight(job):
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    blank = partial(blank_batch, job.stage, job.model, job.mixture)
    blocks = [Block("text2image", 0, 5), Block("image2text", 0, 1)]
    batches = [[data.batch(block, rank, 2) for block in blocks] for rank in range(2)]
    passes = [MicroBatches(2, 1, blank).parts(blocks, mine) for mine in batches]
    assert [[part.stands_in for part in mine] for mine in passes] == [
        [False, False, True, True],
        [False, False, False, False],
    ]
    whole_copies = MicroBatches(2, 1).parts(blocks, batches[0])
    assert [part.stands_in for part in whole_copies] == [False, False]


@pytest.mark.parametrize("task", ["text2image", "image2text", "text"])
def test_a_worker_all_of_whose_pictures_are_corrupt_has_a_blank_part_from_the_first_step_on(job, task):
    """As right after a resume: there is no earlier batch that it could repeat."""
    model = Harmon(job.model).double()
    blank = partial(blank_batch, job.stage, job.model, job.mixture)
    (part,) = MicroBatches(2, None, blank).parts([Block(task, 0, 4)], [None])
    loss = loop.loss_sum(model, part.batch, torch.float64, torch.device("cpu")).total * 0.0
    loss.backward()
    data = StageData(job.stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    reached = {name for name, value in model.named_parameters() if value.grad is not None}
    assert part.stands_in and all(not value.grad.any() for value in model.parameters() if value.grad is not None)
    model.zero_grad()
    loop.loss_sum(model, data.batch(Block(task, 0, 4), 0, 1), torch.float64, torch.device("cpu")).total.backward()
    assert reached == {name for name, value in model.named_parameters() if value.grad is not None}


def test_autocast_trains_like_float32_with_float32_weights(job, tmp_path):
    single = at(job, tmp_path, dtype="float32")
    mixed = at(job, tmp_path, dtype="float32", autocast="bfloat16")
    assert training_key(mixed) != training_key(single)
    ours, theirs = train(mixed), train(single)
    for low, high in zip(losses(ours), losses(theirs), strict=True):
        assert low == pytest.approx(high, rel=0.05)
        assert low != high
    assert {value.dtype for value in load_file(final_weights(ours)).values()} == {torch.float32}


def test_the_average_follows_the_weights_and_survives_a_resume(job, plain, tmp_path):
    averaged = at(job, tmp_path, average=0.5)
    folder = train(averaged)
    weights = [load_file(folder / "checkpoints" / step / MODEL) for step in ("000002", "000004")]
    averages = [load_file(folder / "checkpoints" / step / AVERAGE) for step in ("000002", "000004")]
    assert (folder / "checkpoints" / "000004" / MODEL).read_bytes() == final_weights(plain).read_bytes()
    name = "mar.mask_token"
    assert not torch.equal(weights[1][name], averages[1][name])
    assert sorted(averages[1]) == sorted(weights[1])
    resumed = at(averaged, tmp_path / "again")
    (tmp_path / "again").mkdir()
    (folder / "checkpoints" / "000004").rename(tmp_path / "kept")
    (folder / "done.json").unlink()
    folder.rename(tmp_path / "again" / folder.name)
    again = train(resumed)
    assert (again / "checkpoints" / "000004" / AVERAGE).read_bytes() == (tmp_path / "kept" / AVERAGE).read_bytes()


def test_the_average_takes_in_its_share_of_the_weights(job):
    model = Harmon(job.model)
    average = Average(trained_parameters(model, job.stage), 0.9)
    before = model.mar.mask_token.detach().clone()
    with torch.no_grad():
        model.mar.mask_token.add_(1.0)
    average.update()
    assert torch.allclose(average.tensors["mar.mask_token"], before + 0.1)


def broken_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss is not a number in these train steps, counted from 0."""
    real_loss, real_blocks, now = loop.loss_sum, loop.blocks_of_step, [0]

    def blocks(stage, step):
        now[0] = step
        return real_blocks(stage, step)

    def loss(*arguments):
        value = real_loss(*arguments)
        nan = float("nan")
        broken = LossSum(value.total * nan, value.count, value.per_sample * nan)
        return broken if now[0] in steps else value

    monkeypatch.setattr(loop, "blocks_of_step", blocks)
    monkeypatch.setattr(loop, "loss_sum", loss)


def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone_and_is_logged(job, tmp_path, monkeypatch):
    stage = small_stage(steps=3, warmup_share=0.0)
    broken_at(monkeypatch, 1)
    folder = train(at(job, tmp_path, stage=stage, checkpoint_every=1, keep=9))
    one, two, three = ((folder / "checkpoints" / f"00000{step}" / MODEL).read_bytes() for step in (1, 2, 3))
    assert one == two != three
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped") for line in lines] == [None, [2], None]
    assert lines[1]["loss"] == {} and lines[1]["gradient_norm"] is None
    assert all(value.isfinite().all() for value in load_file(final_weights(folder)).values())


def test_training_ends_with_an_error_when_the_guard_has_lost_its_patience(job, tmp_path, monkeypatch):
    broken_at(monkeypatch, 1, 2, 3)
    with pytest.raises(HarmonError, match="not finite, or a spike, for 2 steps in a row"):
        train(at(job, tmp_path, guard=GuardConfig(patience=2)))


def test_patience_ends_in_its_step_though_the_line_of_metrics_comes_when_losses_are_well_again(
    job, tmp_path, monkeypatch
):
    broken_at(monkeypatch, 0, 1)
    with pytest.raises(HarmonError, match="stage2, step 2: loss or gradient was not finite"):
        train(at(job, tmp_path, guard=GuardConfig(patience=2), log_every=4))


def test_the_average_takes_no_skipped_step_in(job, tmp_path, monkeypatch):
    stage = small_stage(steps=3, warmup_share=0.0)
    broken_at(monkeypatch, 1)
    folder = train(at(job, tmp_path, stage=stage, checkpoint_every=1, keep=9, average=0.5))
    one, two, three = ((folder / "checkpoints" / f"00000{step}" / AVERAGE).read_bytes() for step in (1, 2, 3))
    assert one == two != three


def test_a_notice_saves_once_at_once_and_training_goes_on(job, plain, tmp_path):
    asked: list[str] = []

    def told() -> str:
        asked.append("save" if 1 <= len(asked) <= 2 else "go on")
        return asked[-1]

    folder = train(at(job, tmp_path, checkpoint_every=99, keep=9), told=told)
    assert len(asked) == 4
    assert [path.name for path in complete_checkpoints(folder / "checkpoints")] == ["000002", "000004"]
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()


def test_settings_that_are_off_leave_the_key_as_it_was(job, tmp_path):
    assert training_key(at(job, tmp_path, guard=GuardConfig(), average=None, autocast=None)) == training_key(job)
    assert training_key(at(job, tmp_path, guard=GuardConfig(sigmas=6.0))) != training_key(job)
    assert training_key(at(job, tmp_path, save_behind=True, store="s3://somewhere/else")) == training_key(job)


def test_a_line_tells_speed_memory_and_the_ratio_that_was_trained(job, plain):
    for line in (json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()):
        assert line["tokens_per_second"] > line["samples_per_second"] > 0 and line["flops_per_second"] > 0
        assert "mfu" not in line  # of a CPU no peak is known
        assert 2**27 < line["peak_memory"] < 2**36
        assert sum(line["ratio"].values()) == pytest.approx(1)
    shares = {task: job.stage.ratio.of(task) / 12 for task in line["ratio"]}
    assert line["ratio"] == pytest.approx(shares, abs=1 / 24)  # one block of the 24 so far


def test_a_line_tells_mfu_where_the_devices_peak_is_known(job, tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "peak_of_all", lambda device, workers: workers * 312e12)
    folder = train(at(job, tmp_path, stage=small_stage(steps=1)))
    (line,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert line["mfu"] == pytest.approx(line["flops_per_second"] / 312e12)


def test_the_steps_that_are_profiled_leave_a_trace_and_the_same_weights(job, plain, tmp_path):
    folder = train(at(job, tmp_path, execution=Execution(profile=(2, 3))))
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()
    (trace,) = (folder / "profile").iterdir()
    assert trace.name == "steps-2-3-worker-0.json.gz"
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names and any("AdamW.step" in str(name) for name in names)
    cut = train(at(job, tmp_path / "cut", execution=Execution(profile=(4, 9))))
    assert [path.name for path in (cut / "profile").iterdir()] == ["steps-4-4-worker-0.json.gz"]
    assert not (plain / "profile").exists()
