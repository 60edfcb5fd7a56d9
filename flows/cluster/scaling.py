"""More nodes, or fewer: what is asked of the autoscaler, who leaves, and how work is spared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flows.cluster.live import Live
from flows.cluster.state import Bundles, ClusterState, Node
from pipelines.settings import Settings

LOOK_SECONDS = 20.0  # for which the autoscaler may not yet have seen that a node has left


@dataclass(frozen=True)
class Change:
    """What is wanted."""

    resource: str
    """A node type, of whose own resource each node has 1, or GPU."""
    count: int
    """How much of it there shall be."""
    wait: float = 600.0
    """Seconds that nodes have to come, or to finish their work and leave."""
    stop: bool = False
    """Stop nodes whose work has not ended by then."""
    take_training: bool = False
    """Let nodes go on which training workers run."""


class Outcome(Settings):
    """What came of it."""

    resource: str
    before: float
    now: float
    left: tuple[str, ...] = ()
    """Ids of nodes that have left."""
    leaving: tuple[str, ...] = ()
    """Ids of nodes that take no new work and leave when theirs is done."""
    spared: tuple[str, ...] = ()
    """Ids of nodes that stay, since training workers run there."""
    reached: bool

    @property
    def sentence(self) -> str:
        """As `scale` prints it."""
        said = f"{self.resource}: {self.before:g} before, {self.now:g} now"
        if self.leaving:
            said += f"; {len(self.leaving)} more leave when their work ends"
        if self.spared:
            said += f"; {len(self.spared)} stay because a training runs there (--take-training lets them go)"
        return said


def scale(live: Live, change: Change) -> Outcome:
    """Have the autoscaler keep `change.count` of the resource, drain what is more, and wait.

    Nodes that nobody uses leave first. What runs on a drained node goes on to its end.
    """
    state = live.state()
    before = amount(state, change.resource)
    live.ask(with_floor(state.asked, change.resource, change.count))
    if before <= change.count:
        state = live.wait(lambda now: amount(now, change.resource) >= change.count, change.wait)
        now = amount(state, change.resource)
        return Outcome(resource=change.resource, before=before, now=now, reached=now >= change.count)
    going, spared = leavers(state.of(change.resource), change)
    deadline = time.time() + change.wait
    live.drain(going, deadline if change.stop else None)
    names = {node.id for node in going}
    state = live.wait(lambda now: not _there(now, names), change.wait)
    if change.stop and (late := _there(state, names)):
        stopped = [node for node in late if change.take_training or not node.training]
        live.stop(stopped)
        gone = {node.id for node in stopped}
        state = live.wait(lambda now: not _there(now, gone), LOOK_SECONDS)
    still = {node.id for node in _there(state, names)}
    now = amount(state, change.resource)
    return Outcome(
        resource=change.resource,
        before=before,
        now=now,
        left=tuple(sorted(names - still)),
        leaving=tuple(sorted(still)),
        spared=tuple(sorted(node.id for node in spared)),
        reached=not still and not spared,
    )


def amount(state: ClusterState, resource: str) -> float:
    """How much of `resource` there is on nodes that stay."""
    return sum(node.total[resource] for node in state.of(resource))


def with_floor(asked: Sequence[Bundles], resource: str, count: int) -> list[Bundles]:
    """What was asked before, with `count` bundles of one `resource` in place of those that were."""
    others = [one for one in asked if set(one.bundle) != {resource}]
    return [*others, *([Bundles(bundle={resource: 1.0}, count=count)] if count else [])]


def leavers(nodes: Sequence[Node], change: Change) -> tuple[list[Node], list[Node]]:
    """Who leaves so that no less than `change.count` stays, and who would but for a training that runs there.

    First those that are idle, the longest first, then those with the fewest actors; training workers' nodes last.
    """
    going: list[Node] = []
    spared: list[Node] = []
    staying = sum(node.total[change.resource] for node in nodes)
    order = sorted(nodes, key=lambda n: (n.training, n.state != "IDLE", -n.idle_seconds, len(n.actors), n.id))
    for node in order:
        if staying - node.total[change.resource] < change.count:
            continue
        staying -= node.total[change.resource]
        (going if change.take_training or not node.training else spared).append(node)
    return going, spared


def _there(state: ClusterState, names: set[str]) -> list[Node]:
    return [node for node in state.nodes if node.id in names]
