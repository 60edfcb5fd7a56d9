"""Looks at checkpoints beside whoever follows a training: nobody waits for them, and none outlives its follower."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from ray_workers import processes

from harmon.training.looks import Looks

# writes its process id, and waits until it may end
LOOK = """
import os, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
with (folder / "begun").open("a") as file: file.write(f"{os.getpid()}\\n")
while not (folder / "go").exists(): time.sleep(0.02)
"""


def looks(folder: Path) -> Looks:
    return Looks([sys.executable, "-c", LOOK, str(folder)], "stage1-aaaaaaaa")


def begun(folder: Path) -> list[int]:
    path = folder / "begun"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait(come: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_asking_waits_for_nothing_and_what_is_asked_meanwhile_is_one_look_more(tmp_path):
    beside = looks(tmp_path)
    beside.ask()
    wait(lambda: begun(tmp_path))
    for _ in range(3):  # each returns while the first look is under way
        beside.ask()
    assert len(begun(tmp_path)) == 1
    (tmp_path / "go").touch()
    beside.end()
    assert len(begun(tmp_path)) == 2


def test_ending_at_once_breaks_off_the_look_that_is_under_way(tmp_path):
    beside = looks(tmp_path)
    beside.ask()
    wait(lambda: begun(tmp_path))
    beside.ask()
    beside.end(at_once=True)
    (look,) = begun(tmp_path)  # and no other has begun
    assert look not in processes()


def test_a_look_that_fails_is_a_warning(tmp_path, caplog):
    beside = Looks([sys.executable, "-c", "raise SystemExit('the disk is full')"], "stage1-aaaaaaaa")
    beside.ask()
    beside.end()
    assert "no samples of stage1-aaaaaaaa: the disk is full" in caplog.text


def test_what_was_never_asked_is_never_looked_at(tmp_path):
    looks(tmp_path).end()
    assert not begun(tmp_path)
