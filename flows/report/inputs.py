"""What a report is made from: the datasets and the run folder, read as they stand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harmon.training.job import metrics_lines
from harmon.training.stage import Departure
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.location import Location
from pipelines.manifest import Commit
from pipelines.settings import Settings
from pipelines.web import Planted


class StandIn(Settings):
    """A part of this run that takes the place of the paper's: its name here, the paper's, and what
    follows.
    """

    name: str
    instead_of: str
    consequence: str


class Goals(Settings):
    """What the run set out to reach: least shares of right cases, and points above the best constant
    answer.
    """

    colour: float = 0.75
    shape: float | None = None
    two: float | None = None
    answer_margin: float = 0.20
    answers: tuple[str, ...] = ("colour", "count", "existence")


@dataclass(frozen=True)
class ReportInput:
    """Where the run's parts lie. Whatever is missing is said to be missing on the page.

    Below `run` are read train/*/metrics.jsonl, evaluation/ (as `harmon.evaluation.run` writes it), audit.json
    (dataset name to the JSON of `harmon audit`), timings.jsonl (lines of {"step", "subject", "seconds"})
    and curve.jsonl (lines of {"label", "minutes", "colour", "shape", "two"}, shares of right pictures over
    training)."""

    title: str
    run: Path
    datasets: tuple[Location, ...]
    """Folders of the datasets in the order they were made: downloads first, then training sets."""
    planted: tuple[Planted, ...] = ()
    """Bad rows that were put into the lists on purpose."""
    departures: tuple[Departure, ...] = ()
    """Settings of training that are not the paper's; those of sampling are read from the scores."""
    stand_ins: tuple[StandIn, ...] = ()
    goals: Goals = field(default_factory=Goals)
    software: Mapping[str, str] = field(default_factory=dict)
    """Versions of programs in environments of their own (img2dataset, vLLM), by name."""

    @cached_property
    def opened(self) -> tuple[Dataset, ...]:
        """The datasets that have a commit."""
        found = (Dataset(path) for path in self.datasets)
        return tuple(dataset for dataset in found if dataset.head is not None)

    @property
    def missing(self) -> list[str]:
        """Names of the datasets that have no commit."""
        present = {dataset.name for dataset in self.opened}
        return [path.name for path in self.datasets if path.name not in present]

    @property
    def downloads(self) -> list[Dataset]:
        """Datasets that were made from nothing but a list."""
        return [dataset for dataset in self.opened if not _inputs(dataset)]

    @property
    def training_sets(self) -> list[Dataset]:
        """Datasets that were made from other datasets."""
        return [dataset for dataset in self.opened if _inputs(dataset)]

    def made_from(self, dataset: Dataset) -> list[Dataset]:
        """The datasets that `dataset` was made from, as far as they are part of this report."""
        names = _inputs(dataset)
        return [other for other in self.opened if other.name in names]

    @cached_property
    def scores(self) -> dict[str, Any] | None:
        """evaluation/scores.json, or None."""
        document: dict[str, Any] | None = self.document("evaluation/scores.json")
        return document

    def document(self, path: str) -> Any:
        """The JSON document at `path` below the run, or None. Raises HarmonError where it is damaged."""
        file = self.run / path
        try:
            return json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise HarmonError(f"{file} is damaged ({error}); delete it and run its step again.") from None

    def lines(self, path: str) -> list[dict[str, Any]]:
        """The lines of a JSONL file below the run, without a last one that a kill cut short; none where the file
        is absent. Raises HarmonError where another line is damaged."""
        file = self.run / path
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise HarmonError(f"{file} is damaged ({error}); delete it and run its step again.") from None

    def stages(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Folder name and metrics of each stage, in the order of model.json, else of their names."""
        folders = {path.parent.name: path.parent for path in sorted(self.run.glob("train/*/metrics.jsonl"))}
        described = self.document("model/model.json") or {}
        order = [stage["folder"] for stage in described.get("stages", []) if stage["folder"] in folders]
        return [(name, metrics_lines(folders[name])) for name in order or sorted(folders)]


def made_rows(dataset: Dataset) -> Commit | None:
    """The first commit of a dataset: the one that wrote its rows."""
    return next(iter(dataset.commits()), None)


def _inputs(dataset: Dataset) -> set[str]:
    first = made_rows(dataset)
    return {entry.dataset for entry in first.inputs} if first else set()
