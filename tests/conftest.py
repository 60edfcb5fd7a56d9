"""Tests run two at a time: a file's tests stay together, and those that time something run alone after the others.

`make test` calls pytest twice for that: `-n 2 --dist loadgroup -m "not alone"`, then `-m alone`.
"""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Each process of tests has a Prefect of its own: two servers on one SQLite file wait for each other."""
    home = os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="harmon-prefect-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Group tests by file, and all that share the one small run of the recipe, since it takes minutes to make."""
    shares = "small_run" in getattr(item, "fixturenames", ())
    item.add_marker(pytest.mark.xdist_group("small_run" if shares else item.path.stem))
