"""Starting stages through Ray Train: two workers give what one process gives, and a lost worker comes back."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage
from ray_workers import workers_of

from harmon.training.execution import GuardConfig
from harmon.training.job import training_key
from harmon.training.launch import Launch, train_stage
from harmon.training.loop import train
from pipelines.errors import HarmonError

torch.set_num_threads(1)


def losses(folder: Path) -> list[dict]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_on_two_ray_workers_survives_a_killed_worker(tmp_path):
    job = make_job(tmp_path, small_stage(steps=14), dtype="float64", checkpoint_every=4)
    heard: list[int] = []
    killed: list[int] = []

    def on_line(line: dict) -> None:
        heard.append(line["step"])
        if not killed and line["step"] >= 5:
            killed.extend(workers_of(os.getpid())[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    folder = train_stage(job, Launch(workers=2), on_line)
    assert heard[-1] == 14
    assert sorted(set(heard)) == list(range(1, 15))
    alone = train(job.model_copy(update={"runs": str(tmp_path / "alone")}))
    assert alone.name == folder.name
    for ours, theirs in zip(losses(folder), losses(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert train_stage(job, Launch(workers=2)) == folder  # nothing to do: Ray is not even started
    assert not (folder / "ray").exists()


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


def test_a_range_of_workers_names_the_smaller_number_first():
    assert Launch.model_validate({"workers": [2, 4]}).most_workers == 4 and Launch(workers=3).most_workers == 3
    with pytest.raises(ValueError, match="must name the smaller number first"):
        Launch(workers=(4, 2))
