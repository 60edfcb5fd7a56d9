"""One trainer at a time in a stage's folder: whoever comes second is told who is there, unless that one is gone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage

from harmon.training.failure import FinalError
from harmon.training.hold import FILE, Hold
from harmon.training.job import stage_folder, stage_store, training_key
from harmon.training.loop import train
from harmon.training.shard_writer import ShardWriter
from harmon.training.standing import erase, trained_steps
from pipelines.errors import HarmonError

torch.set_num_threads(1)
TRAINER = """
import sys, pathlib, time
from harmon.training.hold import Hold
folder = pathlib.Path(sys.argv[1])
Hold(folder, renew=0.1).take()
(folder / "taken").touch()
time.sleep(600)
"""


def hold(folder: Path, **settings: object) -> Hold:
    return Hold(folder, **({"renew": 0.1, "lapse": 1.0} | settings))


def trainer(folder: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the stage in `folder`."""
    process = subprocess.Popen([sys.executable, "-c", TRAINER, str(folder)])
    deadline = time.monotonic() + 100
    while not (folder / "taken").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def elsewhere(folder: Path, **changes: object) -> None:
    """As a trainer on another machine has left its file."""
    said = {
        "host": "node-7",
        "pid": 4711,
        "since": "2026-11-22T16:00:00",
        "machine": "another",
        "owner": "a",
        "token": "b",
    }
    (folder / FILE).write_text(json.dumps(said | changes))


def test_a_second_trainer_is_told_who_is_there_and_may_come_once_that_one_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("harmon.training.hold.PATIENCE_SECONDS", 1.0)
    first = trainer(tmp_path)
    with pytest.raises(FinalError, match=rf"Process {first.pid} on \S+ trains the stage in .* since 2"):
        hold(tmp_path, lapse=1000.0).take()
    with pytest.raises(FinalError, match=rf"Process {first.pid} on"):  # nor one with another folder and the same store
        hold(tmp_path / "elsewhere", store=str(tmp_path), lapse=1000.0).take()
    assert not (tmp_path / "elsewhere" / FILE).exists()
    first.kill()
    first.wait()
    second, begun = hold(tmp_path, lapse=1000.0), time.monotonic()
    second.take()  # at once: the file has not lapsed, but its process is gone
    assert time.monotonic() - begun < 30
    second.check()
    second.leave()
    assert not (tmp_path / FILE).exists()


def test_a_hold_of_another_machine_lasts_until_it_lapses(tmp_path):
    elsewhere(tmp_path)
    begun = time.monotonic()
    other = hold(tmp_path, lapse=1.0)
    other.take()
    assert time.monotonic() - begun > 1.0
    other.leave()


def test_workers_started_again_by_one_owner_take_over_at_once(tmp_path):
    elsewhere(tmp_path, owner="fit-1")
    begun = time.monotonic()
    again = hold(tmp_path, owner="fit-1", lapse=1000.0)
    again.take()
    assert time.monotonic() - begun < 30
    again.leave()


def test_who_has_lost_it_saves_nothing_more(tmp_path):
    mine = hold(tmp_path)
    mine.take()
    mine.check()
    elsewhere(tmp_path)
    deadline = time.monotonic() + 60
    with pytest.raises(FinalError, match="Process 4711 on node-7 has taken over the stage"):
        while time.monotonic() < deadline:
            mine.check()
            time.sleep(0.05)
    mine.leave()
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node-7"  # the other's file stays


@pytest.mark.parametrize("store", [None, "store"])
def test_who_loses_it_while_saving_leaves_no_checkpoint(tmp_path, monkeypatch, store):
    """It may have slept on the way, and the other be writing the same one."""
    job = make_job(tmp_path, small_stage(steps=2), store=store and str(tmp_path / store))
    key = training_key(job)
    place, real = Path(stage_store(job, key) or stage_folder(job, key)), ShardWriter.write_data

    def taken_over(*given: object) -> object:
        elsewhere(place)
        return real(*given)

    monkeypatch.setattr(ShardWriter, "write_data", taken_over)
    with pytest.raises(HarmonError, match="node-7 has taken over the stage"):
        train(job)
    assert trained_steps(job, key) == 0 and (place / FILE).exists()


def test_neither_training_nor_erasing_begins_beside_a_trainer(tmp_path, monkeypatch):
    monkeypatch.setattr("harmon.training.hold.PATIENCE_SECONDS", 1.0)
    job = make_job(tmp_path, small_stage(steps=2))
    folder = stage_folder(job, training_key(job))
    folder.mkdir(parents=True)
    first = trainer(folder)
    apart = job.model_copy(update={"runs": str(tmp_path / "elsewhere"), "store": job.runs})
    try:
        for begin in (
            lambda: train(job),
            lambda: erase(job, training_key(job)),
            lambda: train(apart),
            lambda: erase(apart, training_key(job)),
        ):
            with pytest.raises(FinalError, match=f"Process {first.pid} on"):
                begin()
        assert not (folder / "checkpoints").exists()
    finally:
        first.kill()
        first.wait()
    assert train(job) == folder and not (folder / FILE).exists()
