"""Child processes that end with the process that started them, also when that one is killed with -9."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` with stdout and stderr into `output` (discarded when None), in a process group of its own.

    On Linux the kernel kills the child when the *thread* that called this ends, so call it from a thread that lives as
    long as the child is needed. Elsewhere only `stop` ends it.
    """
    parent = os.getpid()
    return subprocess.Popen(
        list(command),
        env=dict(env) if env is not None else None,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output if output is not None else subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=(lambda: _die_with(parent)) if sys.platform == "linux" else None,
    )


def stop(child: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End `child` and its process group: SIGTERM, then SIGKILL after `patience` seconds."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            child.wait(patience)
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with(parent: int) -> None:
    """Between fork and exec: ask the kernel for SIGKILL at the parent's death, which may already have happened."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
