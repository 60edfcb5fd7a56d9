"""One step of a recipe as the run sees it: whether it is done, and how it is done."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pipelines.dataset import Dataset
from pipelines.steps import ProgressCallback


@dataclass(frozen=True)
class Work:
    """One step on one dataset, stage or page."""

    step: str
    """What --from and --until name: publish, download, rewrite, clarity, select, latents, train, evaluate, …"""
    subject: str
    """What it is done to: a dataset's or stage's name."""
    is_done: Callable[[], bool]
    """Asked only when everything before it is done."""
    do: Callable[[ProgressCallback], None]
    undo: Callable[[], None] | None = None
    """Takes the result away, so that it is made again; None: it stands in a dataset, where nothing is overwritten."""
    session: Callable[[], AbstractContextManager[None]] | None = None
    """What stays open from the first step with this session to the last: one Ray for all stages."""
    unit: str = "shards"
    """What its progress counts."""
    ask: Callable[[], None] | None = None
    """A person resumes the flow run before it is done; called before that, and raises where there is nothing to ask."""
    shows: Dataset | Path | None = None
    """What a person may look at once it is done: a dataset, or a page."""

    @property
    def name(self) -> str:
        """As logs and the Prefect UI show it."""
        return f"{self.step}:{self.subject}"
