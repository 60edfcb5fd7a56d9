"""What a recipe's rewriting would take, from 200 rows of each that are asked now and not kept."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flows.caption_groups import rewrite_of
from flows.recipe import Recipe
from pipelines.dataset import Dataset
from pipelines.steps import StepRun
from recaption.engines import open_engine
from recaption.estimate import Estimate, count, estimate, measure, nothing


@dataclass(frozen=True)
class AskedStep:
    """One rewriting."""

    name: str
    estimate: Estimate | None
    note: str
    """Why there is no estimate, or how it was made."""


@dataclass(frozen=True)
class Asked:
    """Every rewriting of a recipe."""

    steps: tuple[AskedStep, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """As `harmon plan --ask --json` prints it."""
        return [asdict(step) for step in self.steps]

    def lines(self) -> Iterator[str]:
        """As `harmon plan --ask` prints it."""
        known = [step.estimate for step in self.steps if step.estimate]
        for step in self.steps:
            yield f"asked, {step.name}: {step.note}"
            for line in step.estimate.lines() if step.estimate else ():
                yield f"    {line}"
        costs = [one.cost for one in known if one.cost is not None]
        requests, hours = sum(one.requests for one in known), sum(one.gpu_hours for one in known)
        yield f"sum of captioning: {requests:,} requests, {hours:,.2f} GPU-hours" + (
            f", cost {sum(costs):,.2f}" if costs else ""
        )


def ask_rewriting(recipe: Recipe, gpus: float | None, gpu_hour_price: float | None = None) -> Asked:
    """Ask a sample of every rewriting whose dataset stands: what the others would ask is not known before."""
    reuse = [Dataset(folder) for folder in recipe.reuse]
    return Asked(
        tuple(
            _asked(recipe, name, prompt, reuse, gpus, gpu_hour_price)
            for name in recipe.recaption.datasets
            for prompt in recipe.recaption.prompts
        )
    )


def _asked(
    recipe: Recipe, name: str, prompt: str, reuse: list[Dataset], gpus: float | None, price: float | None
) -> AskedStep:
    title, dataset = f"rewrite:{name}@{prompt}", Dataset(recipe.dataset(name))
    if dataset.head is None:
        return AskedStep(title, None, f"not known before the dataset {dataset.root} stands")
    recaption = rewrite_of(recipe, prompt)
    if StepRun(dataset, recaption.step(dataset)).committed:
        return AskedStep(title, None, "done")
    counts = count(dataset, recaption, reuse)
    if not counts.requests:
        return AskedStep(title, nothing(counts), "nothing is left to ask")
    with open_engine(recipe.recaption, recaption.model, recipe.run_folder / "logs" / "vllm-plan.log") as engine:
        rates = measure(dataset, recaption, counts, engine)
    told = estimate(counts, rates, recipe.recaption.gpus_used(gpus), price)
    return AskedStep(title, told, f"from {rates.measured} rows measured with {rates.engine}")
