"""What stands in a Ray cluster: nodes, what runs where, what was asked for, and what nobody uses."""

from collections import Counter
from collections.abc import Iterator, Mapping

from pipelines.settings import Settings

TRAINING = ("RayTrainWorker", "TrainController")
"""Ray Train's classes: a node that holds one of these actors is never stopped unasked."""


class Node(Settings):
    """One machine that takes part."""

    id: str
    type: str
    """Node type of the launcher's file, or worker group of the RayCluster."""
    ip: str
    state: str
    """As Ray says: RUNNING (something runs there), IDLE, DRAINING (takes no new work, leaves when it is done)."""
    head: bool = False
    total: Mapping[str, float] = {}
    """Resources by name: CPU, GPU, and one named like the node's type, of which it has 1, by which it is asked for."""
    used: Mapping[str, float] = {}
    idle_seconds: float = 0.0
    actors: tuple[str, ...] = ()
    """Classes of the actors that live there."""

    @property
    def training(self) -> bool:
        """Whether a training worker, or who leads them, runs there."""
        return any(actor in TRAINING for actor in self.actors)

    @property
    def leaving(self) -> bool:
        """Whether it is drained already."""
        return self.state == "DRAINING"

    @property
    def unused(self) -> float:
        """Share of it that nobody uses, 0 to 1: of its GPUs where it has any, else of its CPUs; of a head without
        CPUs, none, since the cluster needs it.
        """
        for resource in ("GPU", "CPU"):
            if self.total.get(resource, 0.0) > 0:
                return 1.0 - self.used.get(resource, 0.0) / self.total[resource]
        return 0.0


class Bundles(Settings):
    """Resources wanted together on one node, so many times."""

    bundle: Mapping[str, float]
    count: int

    @property
    def sentence(self) -> str:
        """As `status` prints it."""
        return f"{self.count} x {', '.join(f'{name} {amount:g}' for name, amount in sorted(self.bundle.items()))}"


class Job(Settings):
    """A submitted job that has not ended."""

    name: str
    status: str
    stage: str | None = None
    """Of a training stage that `harmon train` or `harmon run` handed over: the stage's name."""
    folder: str | None = None
    """And its folder."""
    entrypoint: str = ""


class ClusterState(Settings):
    """A look at the whole cluster."""

    nodes: tuple[Node, ...]
    coming: Mapping[str, int] = {}
    """Nodes that the autoscaler is starting, by type."""
    asked: tuple[Bundles, ...] = ()
    """What the autoscaler has been asked to keep, whether it is used or not."""
    waiting: tuple[Bundles, ...] = ()
    """What tasks, actors and placement groups wait for."""
    jobs: tuple[Job, ...] = ()

    def of(self, kind: str) -> list[Node]:
        """The nodes of a type that stay."""
        return [node for node in self.nodes if node.type == kind and not node.head and not node.leaving]

    def idle_cost(self, prices: Mapping[str, float]) -> float:
        """Dollars an hour paid for what nobody uses. `prices`: of an hour of a node, by node type."""
        return sum(prices.get(node.type, 0.0) * node.unused for node in self.nodes)

    def cost(self, prices: Mapping[str, float]) -> float:
        """Dollars an hour of all nodes."""
        return sum(prices.get(node.type, 0.0) for node in self.nodes)

    def lines(self, prices: Mapping[str, float]) -> Iterator[str]:
        """For a person."""
        gpus, used = (sum(of.get("GPU", 0.0) for of in side) for side in self._sides())
        coming = ", ".join(f"{count} {kind}" for kind, count in sorted(self.coming.items()))
        yield f"{len(self.nodes)} nodes, {used:g} of {gpus:g} GPUs in use" + (f"; coming: {coming}" if coming else "")
        for node in sorted(self.nodes, key=lambda node: (not node.head, node.type, node.id)):
            yield f"  {node.type:<16} {node.ip:<15} {node.id[:8]}…{node.id[-4:]}  {_doing(node)}"
        for job in self.jobs:
            what = f"trains {job.stage} in {job.folder}" if job.stage else job.entrypoint[:100]
            yield f"  job {job.name} ({job.status.lower()}): {what}"
        for title, bundles in (("kept by request", self.asked), ("waiting for", self.waiting)):
            if bundles:
                yield f"{title}: {'; '.join(one.sentence for one in bundles)}"
        unpriced = sorted({node.type for node in self.nodes} - set(prices))
        if prices:
            yield f"${self.cost(prices):,.2f} an hour, of which ${self.idle_cost(prices):,.2f} for what nobody uses"
        if unpriced:
            yield f"no price is known of: {', '.join(unpriced)}"

    def _sides(self) -> tuple[list[Mapping[str, float]], list[Mapping[str, float]]]:
        return [node.total for node in self.nodes], [node.used for node in self.nodes]


def _doing(node: Node) -> str:
    state = f"idle for {node.idle_seconds:,.0f} s" if node.state == "IDLE" else node.state.lower()
    usage = [
        f"{node.used.get(name, 0.0):g}/{node.total[name]:g} {name}s" for name in ("GPU", "CPU") if node.total.get(name)
    ]
    runs = [f"{count} x {name}" for name, count in sorted(Counter(node.actors).items())]
    return ", ".join(["head" if node.head else state, *usage, *runs])
