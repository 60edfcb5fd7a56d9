"""A writer killed with SIGKILL, whenever, and run again makes the dataset that an undisturbed one makes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from small_datasets import write_all

from pipelines.audit import audit
from pipelines.dataset import Dataset

KILLS = 200 if os.environ.get("HARMON_SOAK") else 6
SCRIPT = Path(__file__).with_name("small_datasets.py")
REPOSITORY = Path(__file__).parents[2]


def start(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The writer in a process of its own, returned once its imports are done."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(root), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_killed_writer_converges_to_the_undisturbed_content_hash(tmp_path: Path) -> None:
    undisturbed = write_all(tmp_path / "undisturbed" / "toys")
    began = time.monotonic()
    write_all(tmp_path / "timed" / "toys")
    seconds = time.monotonic() - began
    expected = [commit.content_hash for commit in undisturbed.commits()]
    draw = random.Random(20250321)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        root = tmp_path / f"round-{rounds}" / "toys"
        while kills < KILLS:
            at_a_call = kills % 2 == 0  # every other kill is at an exact fsync or link, the rest at a random time
            process = start(root, *([str(draw.randint(1, 60))] if at_a_call else []))
            if not at_a_call:
                time.sleep(draw.uniform(0, seconds))
                process.kill()
            if process.wait(timeout=60) == 0:
                break  # finished before it could be killed: the next round starts afresh
            assert process.returncode == -9
            kills += 1
            if root.exists():
                assert audit(Dataset(root), deep=True).sound  # leftovers are never damage
        assert start(root).wait(timeout=60) == 0
        dataset = Dataset(root)
        assert [commit.content_hash for commit in dataset.commits()] == expected
        report = audit(dataset, deep=True)
        assert report.sound, list(report.lines())
        assert dataset.total_rows == undisturbed.total_rows
