"""The other way in: torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage

from harmon.training.__main__ import main
from harmon.training.checkpoint import latest_checkpoint
from harmon.training.job import TrainJob, done, read_job, stage_folder, training_key, write_job
from harmon.training.loop import train
from harmon.training.stage import PARTS

torch.set_num_threads(1)
PATIENCE, EVERY = 240.0, 100


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    # low rates: over hundreds of steps 1e-2 would blow the last bits of sums up beyond 1e-9
    stage = small_stage(steps=3 * EVERY, learning_rate=dict.fromkeys(PARTS, 1e-4))
    return make_job(tmp_path_factory.mktemp("run"), stage, dtype="float64", checkpoint_every=1000, log_every=EVERY)


def torchrun(job: TrainJob, workers: int = 2) -> subprocess.Popen[str]:
    path = write_job(job, stage_folder(job, training_key(job)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    return subprocess.Popen(
        [sys.executable, *command, "-m", "harmon.training", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_stage_that_torchrun_was_told_to_stop_stops_soon_and_goes_on_with_the_same_losses(job, tmp_path):
    there = job.model_copy(update={"runs": str(tmp_path)})
    folder = stage_folder(there, training_key(there))
    process = torchrun(there)
    deadline = time.monotonic() + PATIENCE
    while not lines(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode and "was told to stop and saved step" in said, said
    saved = int(latest_checkpoint(folder / "checkpoints").name)
    assert EVERY < saved < 2 * EVERY  # long before a line of metrics was due
    assert done(folder, training_key(there)) is None
    process = torchrun(there, workers=3)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    theirs = {line["step"]: line["loss"] for line in lines(train(job))}
    assert [line["step"] for line in lines(folder)] == [EVERY, saved, 2 * EVERY, 3 * EVERY]
    for line in lines(folder):  # each is a mean since the last: those next to the saved step have other parts
        if line["step"] in (EVERY, 3 * EVERY):
            assert line["loss"] == pytest.approx(theirs[line["step"]], rel=1e-9)


def test_a_job_comes_back_from_its_file(job, tmp_path):
    path = write_job(job, tmp_path)
    assert training_key(read_job(path)) == training_key(job)


def test_without_torchrun_it_says_how_to_start_it(job, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert main([str(write_job(job, tmp_path))]) == 2
    assert "torchrun -m harmon.training" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "job.json").write_text('{"stagee": 1}')
    assert main([str(tmp_path / "job.json")]) == 2
    assert "unknown key 'stagee'" in capsys.readouterr().err
