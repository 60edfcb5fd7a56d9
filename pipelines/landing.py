"""Runs an engine behind the guard, in a process of its own: a script, never imported by the rest.

    python -I pipelines/landing.py '{"engine": "img2dataset", "rules": {...}, "traffic": FOLDER, "arguments": {...}}'

`rules` holds the fields of `pipelines.rules.Rules`, `traffic` is the folder that `pipelines.traffic` follows and where
processes tell each other of the pauses that hosts ask for, and `arguments` are those of `img2dataset.download`, or of
`pipelines.native.fetch_all`. With img2dataset the Python is that of its own environment. Everything above the last
lines also runs in the worker processes that img2dataset spawns, since they load this file again before any work reaches
them; so each of them is guarded, and ends with the process that started it.
"""

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

FIRST = "HARMON_LANDING_PID"


def add_pipelines() -> None:
    """Let `pipelines` be imported from this folder, without putting any folder on the path of the environment."""
    folder = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(
        "pipelines", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def end_with_first() -> None:
    """In a spawned worker: end soon after the first process does, which left its number in the environment.

    (`children.spawn` sees to the first process.) The kernel could tell of a parent's death, but means the thread that
    started the worker: a thread of the pool, which ends before the pool has let go of its locks.
    """
    first = int(os.environ.setdefault(FIRST, str(os.getpid())))

    def watch() -> None:
        while os.getppid() == first:
            time.sleep(0.5)
        os._exit(1)

    if first != os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def leave_out_unused() -> None:
    """Put empty modules in place of two libraries that take most of the time of importing img2dataset.

    They log to a service and resize, which nothing asks for here; a use would fail for want of an attribute.
    """
    for name in ("wandb", "albumentations"):
        sys.modules[name] = ModuleType(name)


if __name__ in {"__main__", "__mp_main__"}:
    end_with_first()
    add_pipelines()
    settings = json.loads(sys.argv[1])

    from pipelines.politeness import Pauses
    from pipelines.rules import Rules
    from pipelines.traffic import Meter

    rules, meter = Rules(**settings["rules"]), Meter(Path(settings["traffic"]))
    pauses = Pauses(Path(settings["traffic"]) / "pauses")
    if settings["engine"] == "img2dataset":
        from pipelines.guard import Guard, install

        leave_out_unused()
        install(Guard(rules, meter=meter, pauses=pauses))
    else:
        sys.addaudithook(rules.watch)

if __name__ == "__main__":
    if settings["engine"] == "img2dataset":
        from img2dataset import download  # type: ignore[import-not-found]  # lives in another environment

        download(**settings["arguments"])
    else:
        from pipelines.native import fetch_all

        fetch_all(rules, meter, pauses, **settings["arguments"])
