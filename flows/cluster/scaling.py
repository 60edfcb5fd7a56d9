"""More nodes, or fewer: what is asked of the autoscaler, who leaves, and how work is spared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from flows.cluster.live import Live
from flows.cluster.state import ClusterState, Node
from pipelines.settings import Settings

LOOK_SECONDS = 20.0  # for a stopped node to be seen to be gone


@dataclass(frozen=True)
class Change:
    """What is wanted."""

    kind: str
    """Node type; each of its nodes has 1 of the resource that has its name."""
    count: int
    """Nodes of it that there shall be."""
    wait: float = 600.0
    """Seconds that nodes have to come, or to finish their work and leave."""
    stop: bool = False
    """Stop nodes whose work has not ended by then."""
    take_training: bool = False
    """Let nodes go on which training workers run."""


class Outcome(Settings):
    """What came of it."""

    kind: str
    before: int
    now: int
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
        said = f"{self.kind}: {self.before} nodes before, {self.now} now"
        if self.leaving:
            said += f"; {len(self.leaving)} more leave when their work ends"
        if self.spared:
            said += f"; {len(self.spared)} stay because a training runs there (--take-training lets them go)"
        return said


def scale(live: Live, change: Change) -> Outcome:
    """Have the autoscaler keep `change.count` nodes of the type, drain those that are more, and wait.

    Nodes that nobody uses leave first. What runs on a drained node goes on to its end.
    """
    kind = change.kind
    nodes = live.state().of(kind)
    before = len(nodes)
    live.ask(kind, change.count)
    if before <= change.count:
        state = live.wait(lambda now: len(now.of(kind)) >= change.count, change.wait)
        now = len(state.of(kind))
        return Outcome(kind=kind, before=before, now=now, reached=now >= change.count)
    going, spared = leavers(nodes, change)
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
    return Outcome(
        kind=kind,
        before=before,
        now=len(state.of(kind)),
        left=tuple(sorted(names - still)),
        leaving=tuple(sorted(still)),
        spared=tuple(sorted(node.id for node in spared)),
        reached=not still and not spared,
    )


def leavers(nodes: Sequence[Node], change: Change) -> tuple[list[Node], list[Node]]:
    """Who leaves so that `change.count` stay, and who would but for a training that runs there.

    First those that are idle, the longest first, then those with the fewest actors; training workers' nodes last.
    """
    order = sorted(nodes, key=lambda n: (n.training, n.state != "IDLE", -n.idle_seconds, len(n.actors), n.id))
    chosen = order[: max(0, len(order) - change.count)]
    going = [node for node in chosen if change.take_training or not node.training]
    return going, [node for node in chosen if node not in going]


def _there(state: ClusterState, names: set[str]) -> list[Node]:
    return [node for node in state.nodes if node.id in names]
