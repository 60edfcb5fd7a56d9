"""Tests run two at a time, those of a file in one process; what times something runs alone after the others.

`make test` calls pytest twice for that: `-n 2 --dist loadfile -m "not alone"`, then `-m alone`.
"""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Each process of tests has a Prefect of its own: two servers on one SQLite file wait for each other."""
    home = os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="harmon-prefect-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
