"""A server that is started here ends here, whatever happens, and says why when it does not come up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.errors import ConfigurationError, HarmonError
from recaption import leash
from recaption.language_model import LanguageModel
from recaption.server import VllmServer

MODEL = LanguageModel(Path("nowhere"), "tiny", "0" * 64)


def command_lines() -> dict[int, str]:
    """Of every running process, by id (zombies have none)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def marked(mark: str) -> list[int]:
    return [pid for pid, line in command_lines().items() if mark in line]


def wait_until(number: int, mark: str, seconds: float = 20.0) -> list[int]:
    deadline = time.monotonic() + seconds
    while len(found := marked(mark)) != number and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("end", ["kill -9 of the parent", "SIGTERM to the leash"])
def test_the_whole_process_group_ends(end: str) -> None:
    mark = f"leash-{os.getpid()}-{end.split()[0]}"  # stands in the command line of all four processes
    child = [sys.executable, "-c", f"import time; '{mark}'; time.sleep(300)"]
    held = [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({child!r}); time.sleep(300)"]
    parent = (
        "import os, subprocess, sys, time\n"
        f"leash = subprocess.Popen([sys.executable, {leash.__file__!r}, str(os.getpid()), *{held!r}])\n"
        "print(leash.pid, flush=True)\ntime.sleep(300)"
    )
    starter = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    try:
        assert starter.stdout
        leash_pid = int(starter.stdout.readline())
        assert len(wait_until(4, mark)) == 4
        if end.startswith("kill"):
            starter.kill()
            assert wait_until(0, mark) == []
        else:
            os.kill(leash_pid, signal.SIGTERM)
            assert wait_until(1, mark) == [starter.pid]
    finally:
        starter.kill()
        starter.wait()


def test_a_missing_environment_is_named_with_the_way_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARMON_VLLM_PYTHON", str(tmp_path / "python"))
    with pytest.raises(ConfigurationError, match="make vllm"), VllmServer(MODEL, tmp_path / "vllm.log"):
        pass


def test_a_server_that_ends_early_is_told_of_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such model\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setenv("HARMON_VLLM_PYTHON", str(python))
    with pytest.raises(HarmonError, match="no such model"), VllmServer(MODEL, tmp_path / "logs/vllm.log"):
        pass


def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 300\n")
    python.chmod(0o755)
    monkeypatch.setenv("HARMON_VLLM_PYTHON", str(python))
    server = VllmServer(MODEL, tmp_path / "vllm.log", ready_seconds=1.0)
    with pytest.raises(HarmonError, match="not ready after 1 s"), server:
        pass
    assert marked(str(python)) == []


@pytest.mark.parametrize(
    ("gpus", "flags"), [(0, ["float32", "--enforce-eager"]), (8, ["bfloat16", "--tensor-parallel-size", "8"])]
)
def test_the_server_runs_on_what_there_is(
    gpus: int, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("HARMON_VLLM_PYTHON", str(python))
    with pytest.raises(HarmonError), VllmServer(MODEL, tmp_path / "vllm.log", gpus=gpus):
        pass
    assert set(flags) <= set((tmp_path / "vllm.log").read_text().split())
