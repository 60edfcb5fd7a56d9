"""kill -9 of a worker, of the trainer and of a Ray node, during and between checkpoints: the losses stay the same."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
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
        workers = caught(process, moment(folder, during, after=EVERY + number % EVERY))
        kill(victim, process, workers, nodes)
        if victim == "trainer":
            assert process.wait(PATIENCE) == -signal.SIGKILL
            wait_until_gone(workers)
            assert not done(folder, training_key(there)) and last_step(folder) < STEPS
            process = driver(path, LAUNCH)
        wait(process, lambda: set(workers_of(os.getpid())) - set(workers))  # others train in their place
        assert process.wait(PATIENCE) == 0
    assert done(folder, training_key(there))
    ours, theirs = metrics_lines(folder), metrics_lines(alone)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9) and one["samples"] == other["samples"]
    assert not list((folder / "checkpoints").glob(".writing-*"))


def moment(folder: Path, during: bool, after: int) -> Callable[[], bool]:
    """When to kill: from step `after` on, while a checkpoint is written or while none is; never in the last one."""

    def come() -> bool:
        written = [int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob(".writing-*")]
        if during:
            return any(after <= step < STEPS for step in written)
        return not written and after <= last_step(folder) < STEPS

    return come


def last_step(folder: Path) -> int:
    return max((line["step"] for line in metrics_lines(folder)), default=0)


def caught(process: subprocess.Popen[bytes], come: Callable[[], bool]) -> list[int]:
    """The training's workers, stopped in the moment that `come` waits for, so that it lasts until one is killed."""
    wait(process, lambda: len(workers_of(os.getpid())) == LAUNCH.workers)
    workers = workers_of(os.getpid())
    while True:
        wait(process, come, pause=0.001)
        signalled(workers, signal.SIGSTOP)
        if come():
            return workers
        signalled(workers, signal.SIGCONT)


def wait(process: subprocess.Popen[bytes], come: Callable[[], object], pause: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE
    while not come():
        assert process.poll() is None and time.monotonic() < deadline, "training ended before what was waited for"
        time.sleep(pause)


def kill(victim: str, process: subprocess.Popen[bytes], workers: list[int], nodes: RayNodes | None) -> None:
    """kill -9 of the victim; those who live on are no longer held."""
    killed = process.pid if victim == "trainer" else workers[0]
    if victim == "node":
        assert nodes is not None
        nodes.kill_under(killed)
    else:
        os.kill(killed, signal.SIGKILL)
    signalled(workers, signal.SIGCONT)


def signalled(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # the one that was killed
            os.kill(pid, number)


def wait_until_gone(pids: list[int]) -> None:
    """The kernel ends a killed trainer's Ray; no worker of it may write beside the next."""
    assert pids
    deadline = time.monotonic() + PATIENCE
    while set(pids) & set(processes()):
        assert time.monotonic() < deadline, "workers of the killed trainer live on"
        time.sleep(0.1)


def test_the_moments_are_told_apart(tmp_path):
    during, between = moment(tmp_path, during=True, after=5), moment(tmp_path, during=False, after=5)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 6}) + "\n")
    assert between() and not during() and not moment(tmp_path, during=False, after=7)()
    (tmp_path / "checkpoints" / ".writing-000005").mkdir(parents=True)
    assert during() and not between() and not moment(tmp_path, during=True, after=6)()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": STEPS}) + "\n")
    (tmp_path / "checkpoints" / ".writing-000005").rename(tmp_path / "checkpoints" / f".writing-{STEPS:06d}")
    assert not during() and not between()
