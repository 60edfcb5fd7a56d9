"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import ConfigurationError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends without an error.

    Raises:
        ConfigurationError: `folder` is a file or already holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} already holds something; name a new folder with -o.")
    attempt = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    try:
        yield attempt
        for path in (*attempt.iterdir(), attempt):
            _sync(path)
        attempt.replace(folder)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
