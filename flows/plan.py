"""What a recipe will take before any of it is spent: the sum of its steps' estimates."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flows.caption_groups import rewrite_of
from flows.recipe import Recipe
from flows.train import forecast_of
from harmon.training.forecast import Forecast
from pipelines.dataset import Dataset
from pipelines.steps import StepRun
from recaption.engines import open_engine
from recaption.estimate import Estimate, count, estimate, measure, nothing


@dataclass(frozen=True)
class PlannedStep:
    """One step of a recipe."""

    name: str
    estimate: Estimate | None
    note: str
    """Why there is no estimate, or how it was made."""


@dataclass(frozen=True)
class Plan:
    """The steps that can be estimated: those that ask a language model, and the training stages."""

    recipe: str
    steps: tuple[PlannedStep, ...]
    stages: tuple[tuple[str, Forecast], ...] = ()
    """What each training stage takes."""

    def to_json(self) -> dict[str, Any]:
        """As `harmon plan --json` prints it."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """As `harmon plan` prints it."""
        yield f"{self.recipe}: estimates of captioning and training (the other steps have none yet)"
        known = [step.estimate for step in self.steps if step.estimate]
        for step in self.steps:
            yield f"{step.name}: {step.note}"
            for line in step.estimate.lines() if step.estimate else ():
                yield f"    {line}"
        costs = [one.cost for one in known if one.cost is not None]
        requests, hours = sum(one.requests for one in known), sum(one.gpu_hours for one in known)
        for name, told in self.stages:
            yield f"train:{name}:"
            yield from (f"    {line}" for line in told.lines())
        yield f"sum of captioning: {requests:,} requests, {hours:,.2f} GPU-hours" + (
            f", cost {sum(costs):,.2f}" if costs else ""
        )


def plan(recipe: Recipe, gpus: float | None, gpu_hour_price: float | None = None) -> Plan:
    """Estimate every captioning step of `recipe` from a sample of 200 rows that is asked now, and not kept; and each
    training stage on `gpus`, laid out as its job says, from sizes alone.

    A step whose dataset does not stand yet has no estimate: what it would ask is not known before.
    """
    steps: list[PlannedStep] = []
    reuse = [Dataset(folder) for folder in recipe.reuse]
    for name in recipe.recaption.datasets:
        for prompt in recipe.recaption.prompts:
            title, dataset = f"rewrite:{name}@{prompt}", Dataset(recipe.dataset(name))
            recaption = rewrite_of(recipe, prompt)
            if dataset.head is None:
                steps.append(PlannedStep(title, None, f"not known before the dataset {dataset.root} stands"))
                continue
            if StepRun(dataset, recaption.step(dataset)).committed:
                steps.append(PlannedStep(title, None, "done"))
                continue
            counts = count(dataset, recaption, reuse)
            if not counts.requests:
                steps.append(PlannedStep(title, nothing(counts), "nothing is left to ask"))
                continue
            with open_engine(recipe.recaption, recaption.model, recipe.run_folder / "logs" / "vllm-plan.log") as engine:
                rates = measure(dataset, recaption, counts, engine)
            told = estimate(counts, rates, recipe.recaption.gpus_used(gpus), gpu_hour_price)
            steps.append(PlannedStep(title, told, f"from {rates.measured} rows measured with {rates.engine}"))
    workers = int(gpus) if gpus and gpus >= 1 else None
    stages = [settings.stage for settings in recipe.training.stages]
    told_stages = tuple((stage, forecast_of(recipe, number, workers)) for number, stage in enumerate(stages))
    return Plan(recipe.name, tuple(steps), told_stages)
