"""A finished run beside its estimate, and the rates that it teaches.

RUN/timings.jsonl has the seconds of each step, RUN/report.json the recipe that the run was made by, and the stages'
lines of metrics the time of training that was stopped and gone on with.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.plan.drafts import Draft
from flows.plan.plan import AS_SAID, Means, Plan, plan
from flows.plan.rates import Observation, read_learned, write_learned
from flows.plan.told import duration
from flows.recipe import Recipe
from harmon.evaluation.curve import training_seconds
from harmon.trained import description_of
from harmon.training.job import parsed_lines
from pipelines.errors import ConfigurationError
from pipelines.settings import parse

TIMINGS, REPORT = "timings.jsonl", "report.json"


@dataclass(frozen=True)
class Compared:
    """One step of a run."""

    step: str
    amount: float
    unit: str
    estimate: float | None
    """Seconds; None where no rate was known."""
    measured: float | None
    """Seconds; None where the run has none, since the step did not run."""

    @property
    def off(self) -> float | None:
        """By which share of the measurement the estimate lies above it."""
        if self.estimate is None or not self.measured:
            return None
        return self.estimate / self.measured - 1


@dataclass(frozen=True)
class Actual:
    """All steps of a run, and what was learned."""

    run: Path
    steps: tuple[Compared, ...]
    recorded: bool
    """Whether the run says by which recipe it was made; else the one that was named is taken for it."""
    learned: tuple[Observation, ...]
    file: Path

    @property
    def estimate(self) -> float:
        """Seconds of the steps that have both."""
        return sum(one.estimate or 0.0 for one in self.steps if one.off is not None)

    @property
    def measured(self) -> float:
        """Seconds of the steps that have both."""
        return sum(one.measured or 0.0 for one in self.steps if one.off is not None)

    def lines(self) -> Iterator[str]:
        """As `harmon plan --actual` prints it."""
        whose = "its own recipe" if self.recorded else "the recipe named: the run does not say its own"
        yield f"{self.run}: what its steps would have been expected to take, and took; by {whose}"
        for one in self.steps:
            off = "" if one.off is None else f"  {one.off:+.0%}"
            told = f"{one.step:24} {duration(one.estimate):>12} {duration(one.measured):>12}"
            yield f"{told}{off}  {one.amount:,.4g} {one.unit}"
        if self.measured:
            both = duration(self.estimate), duration(self.measured)
            yield f"{'sum of those with both':24} {both[0]:>12} {both[1]:>12}  {self.estimate / self.measured - 1:+.0%}"
        yield f"{len(self.learned)} rates are in {self.file}, which the next plan reads"

    def to_json(self) -> dict[str, Any]:
        """As `harmon plan --actual --json` prints it."""
        rows = [vars(one) | {"off": one.off} for one in self.steps]
        return {"run": str(self.run), "steps": rows, "estimate": self.estimate, "measured": self.measured} | {
            "recorded_recipe": self.recorded,
            "learned": [one.model_dump() for one in self.learned],
            "file": str(self.file),
        }


def actual(recipe: Recipe, run: Path, means: Means = AS_SAID) -> Actual:
    """Compare the run in folder `run` with what was to be expected of it before, then learn its rates into
    `means.learned`.

    Raises:
        ConfigurationError: there is no such run, or its record of a recipe is damaged.
    """
    run = run.absolute()
    timed = _timings(run)
    own = _recorded(run)
    subject = _at(own or recipe, run)
    before = plan(subject, means, look=False)
    seconds = {name: _with_resumes(run, name, one["seconds"]) for name, one in timed.items()}
    compared = tuple(_compared(step.draft, step.seconds, seconds) for step in before.steps)
    learned = tuple(_observed(before, run, timed, seconds))
    write_learned(means.learned, read_learned(means.learned).with_run(learned))
    return Actual(run, compared, own is not None, learned, means.learned)


def _compared(draft: Draft, estimate: float | None, seconds: Mapping[str, float]) -> Compared:
    return Compared(draft.name, draft.amount, draft.unit, estimate, seconds.get(draft.name))


def _observed(before: Plan, run: Path, timed: Mapping[str, Any], seconds: Mapping[str, float]) -> Iterator[Observation]:
    for step in before.steps:
        if seconds.get(step.name) and step.draft.amount:
            yield Observation(
                step=step.name,
                unit=step.draft.unit,
                amount=step.draft.amount,
                seconds=seconds[step.name],
                workers=step.workers,
                where=before.where,
                recipe=before.recipe,
                run=str(run),
                started=timed[step.name]["started"],
            )


def _timings(run: Path) -> dict[str, dict[str, Any]]:
    """Each step's newest line."""
    path = run / TIMINGS
    if not path.is_file():
        raise ConfigurationError(f"There is no {path}; name the folder of a run that `harmon run` made.")
    return {f"{one['step']}:{one['subject']}": one for one in parsed_lines(path.read_text())}


def _recorded(run: Path) -> Recipe | None:
    path = run / REPORT
    if not path.is_file():
        return None
    try:
        values = json.loads(json.loads(path.read_text())["recipe"])
    except (ValueError, KeyError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}); run `harmon run RECIPE --redo report`.") from None
    return parse(Recipe, values, f"the recipe in {path}")


def _at(recipe: Recipe, run: Path) -> Recipe:
    """`recipe` with its datasets where they lie beside that run, wherever this process stands."""
    named = Path(recipe.runs)
    if named.is_absolute() or "://" in recipe.data or not str(run).endswith(f"/{named}"):
        return recipe
    root = Path(str(run).removesuffix(f"/{named}"))
    return recipe.model_copy(update={"data": str(root / recipe.data), "runs": str(run)})


def _with_resumes(run: Path, step: str, seconds: float) -> float:
    """Of a stage that was stopped and gone on with: the time of all its lines of metrics, not the last part's."""
    kind, _, subject = step.partition(":")
    if kind != "train" or not (run / "model").is_dir():
        return seconds
    for stage in description_of(run).stages:
        if stage.folder.rpartition("-")[0] == subject:
            return max(seconds, max(training_seconds(run, stage).values(), default=0.0))
    return seconds
