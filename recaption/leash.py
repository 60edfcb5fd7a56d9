"""Runs a command for as long as the process that asked for it lives: `python leash.py PARENT_PID COMMAND...`.

A vLLM server is several processes, and killing the first leaves the others behind with all its memory. The
leash starts the command in a process group of its own and ends the whole group when it is asked to (SIGTERM),
when the command ends, or when its own parent is gone, also by kill -9.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

_LOOK_EVERY = 0.2  # seconds
_PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL


def hold(parent: int, command: list[str]) -> int:
    """Run `command` until it ends or `parent` does; returns its exit status."""
    asked_to_stop = False

    def stop(signal_number: int, frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then stops us in order
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not asked_to_stop and os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever of the group is left
    return child.wait()


if __name__ == "__main__":
    sys.exit(hold(int(sys.argv[1]), sys.argv[2:]))
