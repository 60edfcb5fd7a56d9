"""Tests run three at a time, those of a file in one process; what times something runs alone after the others.

`make test` calls pytest twice for that: `-n 3 --dist loadfile -m "not alone"`, then `-m alone`.
"""

import os
import shutil
import tempfile
from typing import Any

import pytest

OF_THE_SMALL_RUN = {f"tests/flows/test_{name}.py" for name in ("observe", "plan", "run")}
"""Files that look at one end-to-end run, which takes minutes: each process that runs them makes its own."""


def pytest_configure(config: pytest.Config) -> None:
    """Each process of tests has a Prefect of its own: two servers on one SQLite file wait for each other."""
    home = os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="harmon-prefect-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, with the files of the small run in one process."""
    from xdist.scheduler import LoadFileScheduling

    class ByRun(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/flows/small_run.py" if file in OF_THE_SMALL_RUN else file

    return ByRun(config, log) if config.getoption("dist") == "loadfile" else None
