"""A gate between two stages: a bound on what the stage before it measured, and where asked a person's word.

What it measured is a mean over lines of its metrics, or a score on scenes of its last checkpoint
(harmon.training.scene_scores).
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from pydantic import Field, model_validator

from harmon.training.job import metrics_lines
from harmon.training.scene_scores import METRIC
from harmon.training.sinks import scalars
from pipelines.disk import write_whole
from pipelines.errors import HarmonError
from pipelines.settings import Settings, nearest

RECORD = "gate.json"
Scores = Callable[[], Mapping[str, float]]
"""Gives the scores on scenes of the stage's last checkpoint, by name."""


class Gate(Settings):
    """What lets the next stage start."""

    metric: str | None = None
    """Name of a number in the stage's metrics, as `loss/text2image` or `text_sensitivity`; or of a score on scenes, as
    `scenes/held_out/colour`, where training.watch.samples.scenes is set."""
    at_least: float | None = None
    at_most: float | None = None
    """Bounds of its mean over the last lines, or of the score."""
    lines: int = Field(10, gt=0)
    """Last lines of metrics that the mean is over; a score is of the last checkpoint alone."""
    approval: bool = False
    """Wait, too, until a person resumes the flow run in the Prefect UI."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if (self.metric is None) == (self.at_least is not None or self.at_most is not None):
            raise ValueError("name a metric together with at_least or at_most")
        if self.metric is None and not self.approval:
            raise ValueError("a gate asks a metric, or a person's approval")
        if self.scores and "lines" in self.model_fields_set:
            raise ValueError("lines: a score on scenes is of the last checkpoint alone; leave it out")
        return self

    @property
    def scores(self) -> str | None:
        """The score on scenes that it asks; None where it asks another metric, or none."""
        return self.metric if self.metric and self.metric.startswith(METRIC) else None


def measured(gate: Gate, folder: Path, scores: Scores | None = None) -> float | None:
    """The mean of the gate's metric in the stage in `folder`, or its one of `scores`; None where the gate has none. It
    is no number where one of the values is none: a metric that was null, infinite or not a number.

    Raises:
        HarmonError: the stage has measured no such number, or its scores cannot be had.
    """
    if gate.metric is None:
        return None
    if gate.scores and scores:
        found = scores()
        if gate.metric not in found:
            near = nearest(gate.metric, sorted(found))
            raise HarmonError(f"The gate's {gate.metric} is no score of the suite that {folder} was scored on; {near}.")
        return found[gate.metric]
    lines = [scalars(line, null=math.nan) for line in metrics_lines(folder)]
    values = [line[gate.metric] for line in lines if gate.metric in line]
    if not values:
        known = sorted({name for line in lines for name in line})
        raise HarmonError(f"The gate's metric {gate.metric} is not in {folder}; {nearest(gate.metric, known)}.")
    last = values[-gate.lines :]
    return fmean(last) if all(map(math.isfinite, last)) else math.nan


def check(gate: Gate, folder: Path, stage: str, scores: Scores | None = None) -> float | None:
    """`measured`, where it lets the next stage start.

    Raises:
        HarmonError: it does not.
    """
    value = measured(gate, folder, scores)
    low, high = gate.at_least, gate.at_most
    if value is not None and not _within(value, low, high):
        asked = " and ".join(
            f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
        )
        raise HarmonError(
            f"The gate behind {stage} is shut: {gate.metric} is {value:.4g}, and it asks {asked}; "
            "train the stage otherwise, or change the gate."
        )
    return value


def _within(value: float, low: float | None, high: float | None) -> bool:
    """Whether the bounds hold; never of what is not a number."""
    return (-math.inf if low is None else low) <= value <= (math.inf if high is None else high)


def pass_gate(gate: Gate, folder: Path, stage: str, key: str, scores: Scores | None = None) -> None:
    """Write down that the gate was passed, for the stage of this `key`. Raises HarmonError where it is shut."""
    record = {"key": key, "gate": gate.model_dump(), "measured": check(gate, folder, stage, scores)}
    write_whole(folder / RECORD, (json.dumps(record) + "\n").encode())


def passed(gate: Gate, folder: Path, key: str) -> bool:
    """Whether exactly this gate was passed by the stage of this `key`."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return record.get("key") == key and record.get("gate") == gate.model_dump()
