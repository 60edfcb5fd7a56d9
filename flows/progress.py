"""A step's progress through its shards as a Prefect progress artifact, for the UI."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipelines.steps import Progress


@contextmanager
def progress_artifact(name: str, unit: str = "shards") -> Iterator[Callable[[Progress], None]]:
    """An artifact at 0 %; what it yields moves it on; 100 % when the block ends without an error."""
    artifact = create_progress_artifact(progress=0.0, key=_key(name), description=f"{unit.capitalize()} of {name}")
    assert isinstance(artifact, UUID)  # a coroutine only inside an event loop

    def show(now: Progress) -> None:
        percent = 100.0 * now.shards_done / max(1, now.shards_total)
        update_progress_artifact(artifact_id=artifact, progress=percent, description=f"{now.rows_done} rows")

    yield show
    update_progress_artifact(artifact_id=artifact, progress=100.0)


def _key(name: str) -> str:
    """Artifact keys hold lower-case letters, digits and dashes only."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
