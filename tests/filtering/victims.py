"""A selection in a process of its own, forked from one that has done its imports, that may be killed anywhere."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from filtering.select import select
from filtering.selection import Selection
from pipelines.dataset import Dataset

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.filtering.victims"])


def run(
    inputs: list[Path], target: Path, rules: Selection, workers: int = 1, die_at: int = 0, after: float = 0.0
) -> int:
    """Select in another process; its exit status, -9 where it was killed: by itself at its `die_at`-th fsync, or by us
    after so many seconds."""
    process = _context.Process(target=_select, args=(inputs, target, rules, workers, die_at))
    process.start()
    if after:
        time.sleep(after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _select(inputs: list[Path], target: Path, rules: Selection, workers: int, die_at: int) -> None:
    if die_at:
        real, calls = os.fsync, 0

        def deadly(stream: int) -> None:
            nonlocal calls
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(stream)

        os.fsync = deadly  # type: ignore[assignment]
    select([Dataset(path) for path in inputs], Dataset(target), rules, workers=workers)
