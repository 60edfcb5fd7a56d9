"""A lease holds while it is renewed, lapses when nobody does, and ends when anybody says so."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from flows.lease import Lease

PATIENCE = 60.0


def held(lease: Lease) -> tuple[threading.Event, list[str]]:
    over, reasons = threading.Event(), []

    def lapsed(why: str) -> None:
        reasons.append(why)
        over.set()

    lease.held(lapsed)
    return over, reasons


def test_it_holds_while_the_block_runs_and_lapses_after_it(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "leases" / "one", 3.0)
    with lease.renewed():
        over, reasons = held(lease)
        assert not over.wait(7.0)
    assert over.wait(PATIENCE) and reasons == ["was not renewed for 3 s"]


def test_it_lapses_where_nobody_ever_renewed_it(tmp_path: Path) -> None:
    over, _ = held(Lease(tmp_path / "one", 0.2))
    assert over.wait(PATIENCE)


def test_it_ends_for_good_whoever_goes_on_renewing_it(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "one", 30.0)
    with lease.renewed():
        over, reasons = held(lease)
        Lease(tmp_path / "one", 30.0).end()
        assert over.wait(PATIENCE) and reasons == ["was ended"]
    lease.forget()
    assert not list(tmp_path.iterdir())


def test_an_owner_killed_with_9_lets_it_lapse_and_no_other_clock_counts(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "one", 2.0)
    code = (
        f"from flows.lease import *; import time\nwith Lease(Path({str(lease.path)!r}), 2.0).renewed(): time.sleep(99)"
    )
    path = os.pathsep.join(filter(None, sys.path))
    owner = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    while not lease.path.exists():
        assert owner.poll() is None
    os.utime(lease.path, (0, 0))  # written long ago, by its own machine's clock
    over, reasons = held(lease)
    assert not over.wait(0.5)
    os.kill(owner.pid, signal.SIGKILL)
    assert over.wait(PATIENCE) and reasons == ["was not renewed for 2 s"]
    owner.wait()
