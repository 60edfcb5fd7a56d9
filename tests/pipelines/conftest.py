"""Fixtures that several of these tests use."""

import shutil
from pathlib import Path

import pytest

from pipelines.dataset import Dataset
from tests.pipelines.small_datasets import write_all
from tests.s3_server import s3_root, s3_server

__all__ = ["original", "s3_root", "s3_server", "toys"]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset with every kind of file, which nobody changes."""
    return write_all(tmp_path_factory.mktemp("data") / "toys")


@pytest.fixture
def toys(original: Dataset, tmp_path: Path) -> Dataset:
    """A copy of it, to be damaged."""
    shutil.copytree(original.root, tmp_path / "toys")
    return Dataset(tmp_path / "toys")
