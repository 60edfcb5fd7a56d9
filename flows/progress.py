"""A step's progress through its shards as a Prefect progress artifact, for the UI."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import ObjectNotFound

from pipelines.steps import Progress

log = logging.getLogger(__name__)


@contextmanager
def progress_artifact(name: str, unit: str = "shards") -> Iterator[Callable[[Progress], None]]:
    """An artifact at 0 %; what it yields moves it on; 100 % when the block ends without an error.

    A server that does not answer meanwhile, as while it starts anew, ends no work: days of training may follow on it.
    """
    artifact = create_progress_artifact(progress=0.0, key=_key(name), description=f"{unit.capitalize()} of {name}")
    assert isinstance(artifact, UUID)  # a coroutine only inside an event loop

    def show(now: Progress) -> None:
        _update(artifact, 100.0 * now.shards_done / max(1, now.shards_total), f"{now.rows_done} rows")

    yield show
    _update(artifact, 100.0)


def _update(artifact: UUID, percent: float, description: str | None = None) -> None:
    try:
        update_progress_artifact(artifact_id=artifact, progress=percent, description=description)
    except (httpx.HTTPError, ObjectNotFound) as error:
        log.warning("Prefect's server does not take progress: %s", error)


def _key(name: str) -> str:
    """Artifact keys hold lower-case letters, digits and dashes only."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
