"""A cluster that works through steps and fails, told by discrete events.

A data step is shards in a queue: a node takes one, and is done with it after its time; if the node fails first, what it
did is lost, the shard goes back, and any node takes it. A training step is a gang: it moves on only while all its nodes
work, writes checkpoints, and after a failure waits for the node's replacement, restarts and goes on from its last
checkpoint. Seconds everywhere; node-seconds where work is summed.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, fields

from flows.plan.failures import HOUR, NodeFailures
from pipelines.errors import ConfigurationError

HOPELESS = 7.0
"""Times the mean time between failures: of what takes longer, fewer than one try in a thousand ends."""


@dataclass(frozen=True)
class Cluster:
    """What fails, and what a failure costs."""

    nodes: int
    mtbf_hours: float | None
    """Mean time between failures of one node; None: none fails."""
    repair_seconds: float = 600.0
    """Until a failed node is replaced."""
    seed: int = 0


@dataclass(frozen=True)
class Training:
    """How a training step guards its work."""

    checkpoint_every: float
    """Seconds of training between two checkpoints."""
    checkpoint_seconds: float
    """That training stands still for one."""
    restart_seconds: float
    """From all nodes being there to the first train step: start, load, compile."""


@dataclass(frozen=True)
class Spent:
    """Where the node-seconds of one step, or of several, went."""

    wall: float = 0.0
    """Seconds by the clock."""
    work: float = 0.0
    """That counts in the end."""
    lost: float = 0.0
    """Done, and lost to failures."""
    replaced: float = 0.0
    """Of failed nodes until their replacement, and in training of the others that wait for it."""
    restarts: float = 0.0
    checkpoints: float = 0.0
    idle: float = 0.0
    """With nothing left to take at a step's end."""
    failures: float = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


class Simulation:
    """One cluster through several steps, one after another; the clock and the failures go on between them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.now = 0.0
        self._nodes = [NodeFailures(cluster.seed, node, cluster.mtbf_hours) for node in range(cluster.nodes)]
        self._up = [0.0] * cluster.nodes
        """When each node works again; in the past for most."""

    def shards(self, shards: int, seconds: float) -> Spent:
        """A data step of so many shards, each `seconds` of one node.

        Raises:
            ConfigurationError: nodes fail so often that such a shard hardly ever ends.
        """
        self._check("A shard", seconds, self.cluster.mtbf_hours)
        begin, now, waiting, done = self.now, self.now, shards, 0
        lost = replaced = 0.0
        failures = 0
        free = deque(node for node, up in enumerate(self._up) if up <= begin)
        events = [(up, node, False) for node, up in enumerate(self._up) if up > begin]
        """When, which node, and whether it ends a shard; else it is back. Node -1: a shard that was lost."""
        heapq.heapify(events)
        replaced += sum(up - begin for up, _, _ in events)
        while done < shards:
            while waiting and free:
                node, waiting = free.popleft(), waiting - 1
                failure = self._nodes[node].after(now)
                if failure >= now + seconds:
                    heapq.heappush(events, (now + seconds, node, True))
                    continue
                up = self._up[node] = self._nodes[node].up_again(failure, self.cluster.repair_seconds)
                lost, replaced, failures = lost + failure - now, replaced + up - failure, failures + 1
                heapq.heappush(events, (failure, -1, False))
                heapq.heappush(events, (up, node, False))
            now, node, ended = heapq.heappop(events)
            if node < 0:
                waiting += 1
                continue
            free.append(node)
            done += ended
        self.now, wall = now, now - begin
        replaced -= sum(when - now for when, node, _ in events if node >= 0)  # that the next step waits for
        idle = wall * self.cluster.nodes - shards * seconds - lost - replaced
        return Spent(wall, shards * seconds, lost, replaced, idle=idle, failures=failures)

    def training(self, seconds: float, guard: Training) -> Spent:
        """A training step of `seconds` of all nodes together.

        Raises:
            ConfigurationError: nodes fail so often that training hardly ever comes to its next checkpoint.
        """
        cycle = guard.restart_seconds + min(seconds, guard.checkpoint_every + guard.checkpoint_seconds)
        mtbf = self.cluster.mtbf_hours
        self._check("A checkpoint", cycle, None if mtbf is None else mtbf / self.cluster.nodes)
        begin, now, done = self.now, max(self.now, *self._up), 0.0
        lost = restarts = checkpoints = 0.0
        replaced, failures = now - begin, 0
        while True:
            failure = min(node.after(now) for node in self._nodes)
            started = min(failure, now + guard.restart_seconds)
            restarts, now = restarts + started - now, started
            part = _until(failure, now, seconds - done, guard)
            done, lost, checkpoints = done + part.kept, lost + part.lost, checkpoints + part.paused
            now = part.end
            if part.ended:
                break
            up = self._back(failure)
            replaced, failures, now = replaced + up - failure, failures + 1, up
        self.now = now
        work, lost, replaced, restarts, checkpoints = (
            one * self.cluster.nodes for one in (seconds, lost, replaced, restarts, checkpoints)
        )
        return Spent(now - begin, work, lost, replaced, restarts, checkpoints, failures=failures)

    def _back(self, failure: float) -> float:
        """When all nodes are there again: others may fail while one is replaced."""
        up = failure + self.cluster.repair_seconds
        while (again := min(node.after(failure) for node in self._nodes)) < up:
            failure, up = again, again + self.cluster.repair_seconds
        return up

    def _check(self, what: str, seconds: float, mtbf_hours: float | None) -> None:
        if mtbf_hours is not None and seconds > HOPELESS * mtbf_hours * HOUR:
            raise ConfigurationError(
                f"{what} takes {seconds / HOUR:,.1f} hours, and something fails every {mtbf_hours:,.1f}: that never "
                "ends; take smaller shards or more checkpoints, fewer nodes, or a larger --mtbf."
            )


@dataclass(frozen=True)
class _Part:
    """Of training, from a start to its end or a failure; seconds."""

    kept: float
    lost: float
    paused: float
    end: float
    ended: bool


def _until(failure: float, now: float, left: float, guard: Training) -> _Part:
    """A checkpoint counts from its end on; none is written at the very end, which is the step's own result."""
    checkpoints = max(0, math.ceil(left / guard.checkpoint_every) - 1)  # until the end
    end = now + left + checkpoints * guard.checkpoint_seconds
    if failure >= end:
        return _Part(left, 0.0, checkpoints * guard.checkpoint_seconds, end, ended=True)
    cycles, rest = divmod(failure - now, guard.checkpoint_every + guard.checkpoint_seconds)
    begun = max(0.0, rest - guard.checkpoint_every)  # of a checkpoint that never stood
    kept = cycles * guard.checkpoint_every
    return _Part(kept, rest - begun, cycles * guard.checkpoint_seconds + begun, failure, ended=False)
