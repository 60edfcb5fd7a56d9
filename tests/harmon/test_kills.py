"""kill -9 of a worker, of the trainer and of a Ray node, during and between checkpoints: the losses stay the same."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage
from ray_nodes import RayNodes, ray_nodes
from ray_workers import processes, workers_of
from train_driver import driver

from harmon.training.job import TrainJob, done, metrics_lines, stage_folder, training_key, write_job
from harmon.training.launch import Launch
from harmon.training.loop import train

torch.set_num_threads(1)
STEPS, EVERY, PATIENCE = 30, 5, 500.0
LAUNCH = Launch(workers=2, max_failures=5)
KILLS = 20 if os.environ.get("HARMON_SOAK") else 3
VICTIMS = ("worker", "trainer", "node")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    folder = tmp_path_factory.mktemp("run")
    return make_job(folder, small_stage(steps=STEPS), dtype="float64", checkpoint_every=EVERY, save_behind=True)


@pytest.fixture(scope="module")
def alone(job) -> Path:
    return train(job)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_training_goes_on_from_the_last_complete_checkpoint(job, alone, tmp_path, number):
    victim, during = VICTIMS[number % 3], number % 2 == 0
    there = job.model_copy(update={"runs": str(tmp_path)})
    folder = stage_folder(there, training_key(there))
    path = write_job(there, folder)
    with ray_nodes(3) if victim == "node" else nullcontext() as nodes:
        process = driver(path, LAUNCH)
        wait(process, moment(folder, during, after=EVERY + number % EVERY))
        standing = workers_of(process.pid)
        kill(victim, process, nodes)
        code = process.wait(PATIENCE)
        assert (code == -signal.SIGKILL) == (victim == "trainer")
        if victim == "trainer":
            wait_until_gone(standing)
            assert driver(path, LAUNCH).wait(PATIENCE) == 0
    assert done(folder, training_key(there))
    ours, theirs = metrics_lines(folder), metrics_lines(alone)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9) and one["samples"] == other["samples"]
    assert not list((folder / "checkpoints").glob(".writing-*"))


def moment(folder: Path, during: bool, after: int) -> Callable[[], bool]:
    """When to kill: at the first line of metrics from step `after` on, or while a checkpoint is written from there."""

    def come() -> bool:
        if during:
            return any(int(path.name.split("-")[1]) >= after for path in (folder / "checkpoints").glob(".writing-*"))
        return any(line["step"] >= after for line in metrics_lines(folder))

    return come


def wait(process: subprocess.Popen[bytes], come: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert process.poll() is None and time.monotonic() < deadline, "training ended before the kill"
        time.sleep(0.001)


def kill(victim: str, process: subprocess.Popen[bytes], nodes: RayNodes | None) -> None:
    if victim == "node":
        assert nodes is not None
        nodes.kill()
    else:
        os.kill(process.pid if victim == "trainer" else workers_of(process.pid)[0], signal.SIGKILL)


def wait_until_gone(pids: list[int]) -> None:
    """The kernel ends a killed trainer's Ray; no worker of it may write beside the next."""
    assert pids
    deadline = time.monotonic() + PATIENCE
    while set(pids) & set(processes()):
        assert time.monotonic() < deadline, "workers of the killed trainer live on"
        time.sleep(0.1)


def test_the_moments_are_told_apart(tmp_path):
    (tmp_path / "checkpoints" / ".writing-000005").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 6}) + "\n")
    assert moment(tmp_path, during=True, after=5)() and not moment(tmp_path, during=True, after=6)()
    assert moment(tmp_path, during=False, after=6)() and not moment(tmp_path, during=False, after=7)()
