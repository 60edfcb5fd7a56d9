"""A selection in a process of its own, forked from one that has done its imports; it may be killed anywhere, or one of
its workers may."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from filtering.select import select
from filtering.selection import Selection
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.filtering.victims"])


def run(
    inputs: list[Path],
    target: Path,
    rules: Selection,
    workers: int = 1,
    die_at: int = 0,
    after: float = 0.0,
    receipts: int = 0,
) -> int:
    """Select in another process; its exit status, -9 where it was killed: by itself at its `die_at`-th fsync, or by us
    after so many seconds. With `receipts` one of its workers is killed once so many shards are finished; the status is
    3 where it says so."""
    process = _context.Process(target=_select, args=(inputs, target, rules, workers, die_at, receipts))
    process.start()
    if after:
        time.sleep(after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _select(inputs: list[Path], target: Path, rules: Selection, workers: int, die_at: int, receipts: int) -> None:
    if die_at:
        real, calls = os.fsync, 0

        def deadly(stream: int) -> None:
            nonlocal calls
            calls += 1
            if calls == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(stream)

        os.fsync = deadly  # type: ignore[assignment]
    if receipts:
        threading.Thread(target=_kill_a_worker, args=(target, receipts), daemon=True).start()
    try:
        select([Dataset(path) for path in inputs], Dataset(target), rules, workers=workers)
    except HarmonError as problem:
        sys.exit(3 if "was killed" in str(problem) else 4)


def _kill_a_worker(target: Path, receipts: int) -> None:
    """Kill a worker of this process as soon as so many shards have a receipt."""
    while len(list((target / "steps").rglob("0*.json"))) < receipts:
        time.sleep(0.002)
    for worker in multiprocessing.active_children()[:1]:
        worker.kill()
