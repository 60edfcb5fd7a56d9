"""A recipe's plan: each step's samples, bytes, GPU-hours, wall time and money, with the assumptions behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.plan.drafts import ON_GPUS, Draft, drafts
from flows.plan.path import critical_path
from flows.plan.prices import Prices, read_prices
from flows.plan.rates import Rate, Where, rate_book
from flows.plan.sizes import check_stated
from flows.recipe import Recipe
from flows.train import forecast_of
from flows.work import work_of
from harmon.training.device import DEVICES
from harmon.training.forecast import Forecast
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.settings import Settings


class Means(Settings):
    """With what a recipe is run, and what is known of it."""

    gpus: int | None = None
    """As if on so many; None: as the recipe says."""
    machines: int = 1
    """Without GPUs, for downloads and the like."""
    gpu_instance: str | None = None
    cpu_instance: str | None = None
    """Of the prices; None: their defaults."""
    gpu_hour_price: float | None = None
    """In place of the instance's."""
    mfu: float | None = None
    """Share of the GPUs' peak that training reaches, in place of what is known or assumed."""
    rows: Mapping[str, int] = {}
    """Of sources, in place of what their publishers say."""
    kept: Mapping[str, float] = {}
    """Share of its sources' rows that a training set keeps."""
    prices: Path | None = None
    learned: Path = Path("runs/rates.json")


AS_SAID = Means()


@dataclass(frozen=True)
class PlannedStep:
    """One step with its rate and price."""

    draft: Draft
    rate: Rate | None
    """None: nobody knows one."""
    workers: int
    gpu: bool
    """Whether the workers are GPUs; else they are machines."""
    usd_per_worker_hour: float
    done: bool = False

    @property
    def name(self) -> str:
        return self.draft.name

    @property
    def seconds(self) -> float | None:
        """Wall time; None where no rate is known."""
        return None if self.rate is None else self.draft.amount * self.rate.seconds / self.workers

    @property
    def gpu_hours(self) -> float:
        return (self.seconds or 0.0) * self.workers / 3600 if self.gpu else 0.0

    @property
    def usd(self) -> float:
        return (self.seconds or 0.0) * self.workers / 3600 * self.usd_per_worker_hour


@dataclass(frozen=True)
class Plan:
    """The steps in order, and how they hang together."""

    recipe: str
    where: Where
    steps: tuple[PlannedStep, ...]
    prices: Prices
    rented: tuple[str, str]
    """Instances with and without GPUs."""
    flops_per_gpu: float
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    """Layout and memory of the training stages, by stage."""

    @property
    def left(self) -> list[PlannedStep]:
        """Steps that are not done."""
        return [step for step in self.steps if not step.done]

    @property
    def seconds(self) -> float:
        """Of the steps that are left one after another, as `harmon run` does them."""
        return sum(step.seconds or 0.0 for step in self.left)

    @property
    def unknown(self) -> list[str]:
        """Steps that are left and have no rate."""
        return [step.name for step in self.left if step.rate is None and step.draft.amount]

    @property
    def gpu_hours(self) -> float:
        return sum(step.gpu_hours for step in self.left)

    @property
    def usd(self) -> float:
        return sum(step.usd for step in self.left)

    @property
    def bytes(self) -> float:
        """That the whole recipe leaves behind."""
        return sum(step.draft.bytes for step in self.steps)

    @property
    def usd_per_month(self) -> float:
        """To keep `bytes`."""
        return self.bytes / 1e9 * self.prices.storage[self.prices.defaults.storage].usd_per_gb_month

    def critical_path(self) -> tuple[list[str], float]:
        """The longest way through the steps that are left, and its seconds: with enough workers for all others."""
        left = {step.name: step.seconds or 0.0 for step in self.left}
        return critical_path(left, {step.name: step.draft.after for step in self.left})

    def train_flops(self) -> float:
        """Of all stages."""
        return sum(step.draft.amount for step in self.steps if step.draft.kind == "train")

    def gpu_hours_at(self, utilisation: float) -> float:
        """Of training all stages at this share of the GPUs' peak."""
        return self.train_flops() / (self.flops_per_gpu * utilisation) / 3600


def plan(recipe: Recipe, means: Means = AS_SAID, look: bool = True) -> Plan:
    """The plan of every step of `recipe`; nothing is asked, started or written.

    `look`: mark the steps that are done; False: tell of every step as if nothing stood.

    Raises:
        ConfigurationError: a price, a rate file, a source's rows or a layout that cannot be had.
    """
    check_stated(recipe, means.rows, means.kept)
    prices = read_prices(means.prices)
    rented = (
        means.gpu_instance or prices.defaults.gpu_instance,
        means.cpu_instance or prices.defaults.cpu_instance,
    )
    with_gpus, without = prices.instance(rented[0], gpus=True), prices.instance(rented[1], gpus=False)
    assert with_gpus.gpu is not None
    peak = DEVICES[with_gpus.gpu].flops
    where: Where = "cuda" if means.gpus or recipe.training.device == "cuda" else "cpu"
    gpus = means.gpus or max(1, recipe.training.launch.most_workers)
    per_gpu = means.gpu_hour_price if means.gpu_hour_price is not None else with_gpus.usd_per_gpu_hour
    book, done = rate_book(means.learned, peak, means.mfu), _done(recipe) if look else frozenset()
    steps = []
    for draft in drafts(recipe, means.rows, means.kept):
        gpu = where == "cuda" and draft.kind in ON_GPUS
        shared = draft.kind == "train" or draft.shard_rows > 0  # what is not cut into shards is one process's
        workers = 1 if where == "cpu" or not shared else gpus if gpu else means.machines
        price = 0.0 if where == "cpu" else per_gpu if gpu else without.usd_per_hour
        rate = book.rate(draft.name, draft.unit, where)
        steps.append(PlannedStep(draft, rate, workers, gpu, price, draft.name in done))
    stages = [settings.stage for settings in recipe.training.stages]
    told = {one: forecast_of(recipe, n, means.gpus) for n, one in enumerate(stages)} if where == "cuda" else {}
    return Plan(recipe.name, where, tuple(steps), prices, rented, peak, told)


def _done(recipe: Recipe) -> frozenset[str]:
    """Names of the steps that are done: those before the first that is not, as a run finds it."""
    names: Sequence[str] = (*recipe.sources, *recipe.sets)
    if all(Dataset(recipe.dataset(name)).head is None for name in names):
        return frozenset()
    found = set()
    try:
        for work in work_of(recipe):
            if not work.is_done():
                break
            found.add(work.name)
    except HarmonError:  # terms that nobody has accepted, weights that are not there: the plan is of what would be
        pass
    return frozenset(found)
