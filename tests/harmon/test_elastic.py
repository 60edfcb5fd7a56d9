"""Workers that come and go within one run, on a Ray of several nodes: batches and losses stay the same."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage
from ray_nodes import ray_nodes
from train_driver import driver

from harmon.training.checkpoint import complete_checkpoints
from harmon.training.job import TrainJob, metrics_lines, stage_folder, training_key, write_job
from harmon.training.launch import Launch
from harmon.training.loop import train
from harmon.training.stage import PARTS

torch.set_num_threads(1)
PATIENCE = 500.0
COURSE = (4, 2, 3, 4)  # workers
SOAK = pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="minutes of two cores: only with HARMON_SOAK=1")


@pytest.mark.slow
def test_workers_come_and_go_within_one_run(tmp_path):
    # How many steps pass meanwhile is the machine's affair: there are more than enough of them, the last size ends the
    # run, and one process trains as many. The tests' usual rates of 1e-2 would blow the last bits of sums, which
    # differ with the number of workers, up beyond 1e-9 within a hundred steps.
    stage = small_stage(steps=10_000, learning_rate=dict.fromkeys(PARTS, 1e-4))
    job = make_job(tmp_path, stage, dtype="float64", checkpoint_every=10)
    folder = stage_folder(job, training_key(job))
    launch = Launch(workers=(min(COURSE), max(COURSE)), resize_seconds=2, max_failures=10)
    with ray_nodes(COURSE[0]) as nodes:
        process = driver(write_job(job, folder), launch)
        for size, following in zip(COURSE, (*COURSE[1:], None)):
            wait(process, lambda size=size: [line["workers"] for line in metrics_lines(folder)[-2:]] == [size] * 2)
            if following:
                nodes.kill(max(0, len(nodes.nodes) - following))
                while len(nodes.nodes) < following:
                    nodes.add()
        process.kill()
        process.wait(PATIENCE)
    same(folder, job, tmp_path)


@pytest.mark.slow
@SOAK  # the course above grows too
def test_more_workers_go_on_where_fewer_were_and_no_step_comes_twice(tmp_path):
    stage = small_stage(steps=10_000, learning_rate=dict.fromkeys(PARTS, 1e-4))
    job = make_job(tmp_path, stage, dtype="float64", checkpoint_every=9_000)  # no checkpoint but those for growing
    folder = stage_folder(job, training_key(job))
    with ray_nodes(1) as nodes:
        process = driver(write_job(job, folder), Launch(workers=(1, 2), resize_seconds=2))
        wait(process, lambda: len(metrics_lines(folder)) > 2)
        nodes.add()
        wait(process, lambda: [line["workers"] for line in metrics_lines(folder)[-2:]] == [2] * 2)
        process.kill()
        process.wait(PATIENCE)
    workers = [line["workers"] for line in metrics_lines(folder)]
    (saved,) = complete_checkpoints(folder / "checkpoints")
    assert workers == [1] * int(saved.name) + [2] * (len(workers) - int(saved.name))
    same(folder, job, tmp_path)


@pytest.mark.slow
@SOAK  # that workers save and stop when they are told so, test_torchrun.py shows each time
def test_a_node_that_is_to_be_taken_away_is_saved_from_first(tmp_path):
    job = make_job(tmp_path, small_stage(steps=60), dtype="float64", checkpoint_every=1000, keep=9)
    folder = stage_folder(job, training_key(job))
    with ray_nodes(2) as nodes:
        process = driver(write_job(job, folder), Launch(workers=2, max_failures=2))
        wait(process, lambda: len(metrics_lines(folder)) > 1)
        nodes.announce_preemption(int((time.time() + PATIENCE) * 1000))
        assert process.wait(PATIENCE) == 0
    early, last = (int(path.name) for path in complete_checkpoints(folder / "checkpoints"))
    assert 2 <= early < last == 60
    same(folder, job, tmp_path)


def wait(process: subprocess.Popen[bytes], come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert process.poll() is None and time.monotonic() < deadline, "training ended before what was waited for"
        time.sleep(0.05)


def same(folder: Path, job: TrainJob, tmp_path: Path) -> None:
    """Step by step the samples and losses of the same job in one process."""
    ours = metrics_lines(folder)
    alone = train(job.model_copy(update={"runs": str(tmp_path / "alone")}), until=ours[-1]["step"])
    for one, other in zip(ours, metrics_lines(alone), strict=True):
        assert one["step"] == other["step"] and one["samples"] == other["samples"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
