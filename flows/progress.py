"""A step's progress through its shards as a Prefect progress artifact and log lines, for the UI."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run

from flows.flow_run import PROGRESS_EVENT

EVERY_SECONDS = 5.0  # a shard a second would ask the server at each: docs/deployments.md tells what that costs
EVENT_SECONDS = 60.0
log = logging.getLogger(__name__)
Show = Callable[[int, int, str], None]
"""Told how many of how many are done, and a word more."""


@contextmanager
def progress_artifact(
    name: str,
    unit: str = "",
    logger: "logging.Logger | logging.LoggerAdapter[logging.Logger]" = log,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Show]:
    """An artifact at 0 %; what it yields moves it on, every few seconds and at the end; 100 % when the block ends
    without an error. Every tenth is a line of the log; that of a deployment's flow run is an event now and then, too,
    whose absence tells that it stands still. A server that does not answer meanwhile, as while it starts anew, ends no
    work: days of training may follow on it.
    """
    artifact = create_progress_artifact(progress=0.0, key=artifact_key(name), description=name)
    assert isinstance(artifact, UUID)  # a coroutine only inside an event loop
    moved, tenth, event = clock(), -1, -EVENT_SECONDS
    run = flow_run.get_id() if deployment.get_id() else None

    def show(done: int, total: int, more: str) -> None:
        nonlocal moved, tenth, event
        share, said = done / max(1, total), f"{f'{done:,} of {total:,} {unit}'.rstrip()}{more}"
        if int(10 * share) > tenth:
            tenth = int(10 * share)
            logger.info("%s: %s", name, said)
        if clock() - moved >= EVERY_SECONDS or done == total:
            moved = clock()
            _update(artifact, 100.0 * share, f"{name}: {said}")
        if run and clock() - event >= EVENT_SECONDS:
            event = clock()
            _emit(run, {"name": name, "done": done, "total": total})

    yield show
    _update(artifact, 100.0)


def _update(artifact: UUID, percent: float, description: str | None = None) -> None:
    try:
        update_progress_artifact(artifact_id=artifact, progress=percent, description=description)
    except (httpx.HTTPError, ObjectNotFound) as error:
        log.warning("Prefect's server does not take progress: %s", error)


def _emit(run: str, said: dict[str, object]) -> None:
    tag = {"prefect.resource.id": "prefect.tag.harmon", "prefect.resource.role": "tag"}
    emit_event(PROGRESS_EVENT, {"prefect.resource.id": f"prefect.flow-run.{run}"}, related=[tag], payload=said)


def artifact_key(name: str) -> str:
    """Artifact keys hold lower-case letters, digits and dashes only."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
