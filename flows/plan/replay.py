"""A recipe at another size, replayed on a cluster whose nodes fail: where the time goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flows.plan.plan import Plan, PlannedStep
from flows.plan.simulation import Cluster, Simulation, Spent, Training
from flows.plan.told import duration
from pipelines.errors import ConfigurationError

PARTS = ("work", "lost", "replaced", "restarts", "checkpoints", "idle")


@dataclass(frozen=True)
class Replayed:
    """Every step of a recipe as it went."""

    recipe: str
    images: int
    cluster: Cluster
    gpus_per_node: int
    guard: Training
    steps: tuple[tuple[str, Spent], ...]
    rates: tuple[str, ...]
    """What the work of each step rests on."""

    @property
    def whole(self) -> Spent:
        """All steps."""
        return sum((spent for _, spent in self.steps), Spent())

    def lines(self) -> Iterator[str]:
        """As `harmon simulate` prints it."""
        one, guard = self.cluster, self.guard
        often = "no node fails"
        if one.mtbf_hours is not None:
            often = f"a node fails every {one.mtbf_hours:,.0f} h on average and back in {duration(one.repair_seconds)}"
        yield f"{self.recipe} at {self.images:,} images on {one.nodes} nodes, seed {one.seed}; {often}"
        yield (
            f"training: a checkpoint every {duration(guard.checkpoint_every)}, which stops it for "
            f"{duration(guard.checkpoint_seconds)}; {duration(guard.restart_seconds)} to start again; the recipe's own "
            "train steps, however many images there are"
        )
        yield f"{'':28}{'wall':>12}" + "".join(f"{part:>12}" for part in PARTS) + f"{'failures':>10}"
        for name, spent in (*self.steps, ("sum", self.whole)):
            shares = "".join(f"{_share(spent, part, one.nodes):>12.1%}" for part in PARTS)
            yield f"{name:28}{duration(spent.wall):>12}{shares}{spent.failures:>10,}"
        yield "shares are of all nodes' time; the work of each step rests on:"
        yield from (f"    {told}" for told in self.rates)

    def to_json(self) -> dict[str, Any]:
        """As `harmon simulate --json` prints it."""
        steps = {name: vars(spent) for name, spent in (*self.steps, ("sum", self.whole))}
        return {
            "recipe": self.recipe,
            "images": self.images,
            "cluster": vars(self.cluster),
            "gpus_per_node": self.gpus_per_node,
            "training": vars(self.guard),
            "steps": steps,
            "rates": list(self.rates),
        }


def _share(spent: Spent, part: str, nodes: int) -> float:
    whole = spent.wall * nodes
    return float(getattr(spent, part)) / whole if whole else 0.0


def replay(plan: Plan, images: int | None, cluster: Cluster, guard: Training) -> Replayed:
    """Every step of `plan`, done or not, with its data work scaled to so many images (None: as planned).

    Raises:
        ConfigurationError: a step has no rate, there are no images to scale, or failures come too often.
    """
    pictures = sum(step.draft.samples for step in plan.steps if step.draft.kind == "download")
    if not pictures:
        raise ConfigurationError("The recipe downloads nothing; there are no images to scale.")
    unknown = [step.name for step in plan.steps if step.rate is None and step.draft.amount]
    if unknown:
        raise ConfigurationError(
            f"No rate is known of {', '.join(unknown)}; run it once, then `harmon plan RECIPE --actual RUN`."
        )
    gpus = plan.prices.instances[plan.rented[0]].gpus if plan.where == "cuda" else 1
    scale, simulation = (images or pictures) / pictures, Simulation(cluster)
    steps = tuple((step.name, _named(simulation, step, scale, gpus, guard)) for step in plan.steps)
    told = tuple(dict.fromkeys(f"{s.draft.kind}: {s.rate.source}" for s in plan.steps if s.rate))
    return Replayed(plan.recipe, images or pictures, cluster, gpus, guard, steps, told)


def _named(simulation: Simulation, step: PlannedStep, scale: float, gpus: int, guard: Training) -> Spent:
    try:
        return _step(simulation, step, scale, gpus, guard)
    except ConfigurationError as error:
        raise ConfigurationError(f"{step.name}: {error}") from None


def _step(simulation: Simulation, step: PlannedStep, scale: float, gpus: int, guard: Training) -> Spent:
    assert step.rate is not None
    draft, nodes = step.draft, simulation.cluster.nodes
    on_node = step.draft.amount * step.rate.seconds / (gpus if step.gpu else 1)
    if draft.kind == "train":
        return simulation.training(on_node / nodes, guard)
    if not draft.shard_rows:  # one process, however many nodes there are
        alone = draft.amount * step.rate.seconds
        return simulation.shards(1, alone * (scale if draft.kind in ("publish", "audit") else 1))
    shards = max(1, round(scale * draft.samples / draft.shard_rows)) if draft.samples else 0
    return simulation.shards(shards, scale * on_node / shards) if shards else Spent()
