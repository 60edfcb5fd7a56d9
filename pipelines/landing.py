"""Runs img2dataset behind the guard: a script for the Python of img2dataset's own environment, never imported
by ours.

    python -I pipelines/landing.py '{"guard": {...}, "download": {...}}'

`guard` holds the fields of `pipelines.guard.Guard`, `download` the arguments of `img2dataset.download`.
Everything above the last lines also runs in the worker processes that img2dataset spawns, since they load
this file again before any work reaches them; so each of them is guarded, and ends with the process that
started it.
"""

import ctypes
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

FIRST = "HARMON_LANDING_PID"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def load_guard() -> ModuleType:
    """guard.py from this folder, without putting the folder on the path of another environment."""
    spec = importlib.util.spec_from_file_location("harmon_guard", Path(__file__).with_name("guard.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def end_with_first() -> None:
    """In a spawned worker: die when the first process does, which left its number in the environment.

    (`children.spawn` sees to the first process. multiprocessing itself does not know the parent yet at this point.)
    """
    first = int(os.environ.setdefault(FIRST, str(os.getpid())))
    if first == os.getpid() or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != first:
        os._exit(1)


def leave_out_unused() -> None:
    """Put empty modules in place of two libraries that take most of the time of importing img2dataset.

    They log to a service and resize, which nothing asks for here; a use would fail for want of an attribute.
    """
    for name in ("wandb", "albumentations"):
        sys.modules[name] = ModuleType(name)


if __name__ in {"__main__", "__mp_main__"}:
    end_with_first()
    leave_out_unused()
    settings = json.loads(sys.argv[1])
    guard = load_guard()
    guard.install(guard.Guard(**settings["guard"]))

if __name__ == "__main__":
    from img2dataset import download  # type: ignore[import-not-found]  # lives in another environment

    download(**settings["download"])
