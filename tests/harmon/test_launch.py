"""Starting stages through Ray Train: two workers give what one process gives, and a lost worker comes back."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage
from ray_workers import workers_of

from harmon.training import growth
from harmon.training.execution import Execution, GuardConfig
from harmon.training.failure import FinalError, final_error
from harmon.training.job import training_key
from harmon.training.launch import Launch, check_workers, ray_session, train_stage
from harmon.training.loop import train
from harmon.training.standing import trained_steps
from pipelines.errors import ConfigurationError, HarmonError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with ray_session(Launch(workers=2)):
        yield


def losses(folder: Path) -> list[dict]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_on_two_ray_workers_stops_where_it_should_and_survives_a_killed_worker(ray, tmp_path):
    job = make_job(tmp_path, small_stage(steps=60), dtype="float64", checkpoint_every=4)
    heard: list[int] = []
    killed: list[int] = []

    def on_line(line: dict) -> None:
        heard.append(line["step"])
        if not killed and line["step"] >= 5:
            killed.extend(workers_of(os.getpid())[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    folder = train_stage(job, Launch(workers=2), on_line, until=50)
    assert killed and heard[-1] == 50 and trained_steps(job, training_key(job)) == 50
    assert train_stage(job, Launch(workers=2), on_line) == folder
    assert heard[-1] == 60
    assert sorted(set(heard)) == list(range(1, 61))
    alone = train(job.model_copy(update={"runs": str(tmp_path / "alone")}))
    assert alone.name == folder.name
    for ours, theirs in zip(losses(folder), losses(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert train_stage(job, Launch(workers=2)) == folder  # nothing to do: Ray is not even started
    assert not (folder / "ray").exists()


def test_training_goes_on_where_nobody_can_be_asked_about_more_workers(ray, monkeypatch, caplog):
    import ray as cluster
    from ray.train.v2._internal.execution.controller.state import ResizingState

    there, gone = growth.open_growth(), growth.open_growth()
    assert growth.asked(there, "wanted") is False
    cluster.kill(gone)
    state = ResizingState.__new__(ResizingState)
    growth.growing_callback(gone).after_controller_state_update(None, state)  # an error here would end the training
    assert growth.asked(gone, "wanted") is None and "cannot speak of more workers" in caplog.text
    growth.asked(there, "end")
    growth.growing_callback(there).after_controller_state_update(None, state)
    assert growth.asked(there, "wanted") is True


def test_without_workers_the_stage_runs_in_this_process(tmp_path):
    job = make_job(tmp_path, small_stage(steps=2))
    heard: list[dict] = []
    folder = train_stage(job, Launch(workers=0), heard.append)
    assert [line["step"] for line in heard] == [1, 2]
    assert folder.name == f"stage2-{training_key(job)[:8]}"


def test_a_failure_says_which_stage_and_why(tmp_path):
    rates = {"encoder": 1e30, "decoder": 1e30, "llm": 1e30}
    job = make_job(tmp_path, small_stage(steps=4, learning_rate=rates), guard=GuardConfig(patience=2))
    with pytest.raises(HarmonError, match="not finite"):
        train_stage(job, Launch(workers=0))


def test_a_failure_that_would_come_again_ends_a_training_on_ray_at_once(ray, tmp_path):
    rates = {"encoder": 1e30, "decoder": 1e30, "llm": 1e30}
    job = make_job(tmp_path, small_stage(steps=4, learning_rate=rates), guard=GuardConfig(patience=2))
    with pytest.raises(FinalError, match="not finite"):  # a start that failed after others is told as "failed in"
        train_stage(job, Launch(workers=2, max_failures=3))


def test_what_a_new_start_may_mend_is_no_final_error():
    lost, gone = ConnectionError("peer"), HarmonError("s3://b cannot be reached")
    wrong, hopeless = ConfigurationError("hsdp"), FinalError("patience")
    assert final_error({0: lost, 1: gone}) is None
    assert final_error({0: lost, 1: hopeless}) is hopeless and final_error({1: hopeless, 0: wrong}) is wrong


def test_workers_that_shards_cannot_fit_are_refused_before_anything_starts():
    def check(workers: object, **execution: object) -> None:
        launch = Launch.model_validate({"workers": workers})
        check_workers(Execution.model_validate(execution), launch)

    check([16, 32])
    check([16, 32], parallel="fsdp")
    check(16, parallel="hsdp", shard_workers=8)
    check([16, 16], parallel="hsdp", shard_workers=8)
    check(0, parallel="hsdp", shard_workers=8)
    with pytest.raises(ConfigurationError, match=r"workers \[8, 24\]: Ray may start any number between"):
        check([8, 24], parallel="hsdp", shard_workers=8)
    with pytest.raises(ConfigurationError, match="hsdp over 20 workers needs shard_workers that divides them, not 8"):
        check(20, parallel="hsdp", shard_workers=8)


def test_a_range_of_workers_names_the_smaller_number_first():
    assert Launch.model_validate({"workers": [2, 4]}).most_workers == 4 and Launch(workers=3).most_workers == 3
    with pytest.raises(ValueError, match="must name the smaller number first"):
        Launch(workers=(4, 2))
