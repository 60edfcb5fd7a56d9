"""The Ray cluster that this machine is the head of, asked and told directly."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flows.cluster.state import Bundles, ClusterState, Job, Node
from pipelines.errors import HarmonError

HEAD_GCS = "127.0.0.1:6379"  # where Ray's launcher and KubeRay have the head listen
MOST = 10_000  # of actors and jobs that Ray's state API lists at once
FOREVER = 10 * 365 * 86400.0  # seconds
ANSWER_SECONDS = 120.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Live:
    """A connection to the head's control store.

    Raises HarmonError where none answers.
    """

    def __init__(self, address: str | None = None) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves this out

        self.address = address or os.environ.get("RAY_ADDRESS") or HEAD_GCS
        try:
            self._gcs = GcsClient(address=self.address)
        except Exception as error:  # Ray raises errors of its own kind here, and RuntimeError
            raise HarmonError(
                f"No Ray head answers at {self.address} ({_first(error)}); start one with `harmon cluster up`."
            ) from None

    def state(self) -> ClusterState:
        """How the cluster stands now."""
        from ray.autoscaler.v2.sdk import get_cluster_status
        from ray.util.state import list_actors, list_jobs

        try:
            status = get_cluster_status(self.address)
            alive = [("state", "=", "ALIVE")]
            actors = list_actors(address=self.address, filters=alive, limit=MOST, raise_on_missing_output=False)
            jobs = list_jobs(address=self.address, limit=MOST, detail=True, raise_on_missing_output=False)
        except Exception as error:  # gRPC's, aiohttp's or Ray's own
            raise HarmonError(
                f"The Ray head at {self.address} does not say how its cluster stands ({_first(error)}); look at its "
                "dashboard's log."
            ) from None
        living: dict[str, list[str]] = defaultdict(list)
        for actor in actors:
            living[str(actor.node_id)].append(str(actor.class_name))
        nodes = [_node(info, living[str(info.node_id)]) for info in (*status.active_nodes, *status.idle_nodes)]
        coming = Counter[str]()
        for launch in status.pending_launches:
            coming[launch.ray_node_type_name] += launch.count
        coming.update(node.ray_node_type_name for node in status.pending_nodes)
        demands = status.resource_demands
        return ClusterState(
            nodes=tuple(nodes),
            coming=dict(coming),
            asked=_bundles(demands.cluster_constraint_demand),
            waiting=_bundles([*demands.ray_task_actor_demand, *demands.placement_group_demand]),
            jobs=tuple(_job(job) for job in jobs if job.type == "SUBMISSION" and job.status not in ENDED),
        )

    def ask(self, kind: str, count: int, seconds: float = FOREVER) -> None:
        """Have the autoscaler keep `count` nodes of a type for `seconds`, instead of what was asked of it before.

        Ray has one place for such wishes, which Ray Train and Ray Data write over every 20 s once one of them has run.
        So this one is told to their coordinator, an actor on the head that adds all of them up, hands the sum on by
        `ray.autoscaler.sdk.request_resources`, and forgets those whose time is over.
        """
        import ray
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        try:
            if not ray.is_initialized():
                ray.init(self.address, log_to_driver=False, logging_level="error")
            coordinator, who = get_or_create_autoscaling_coordinator(), f"harmon cluster {kind}"
            if count:
                wish = {"requester_id": who, "resources": [{kind: 1.0}] * count, "expire_after_s": seconds}
                ray.get(coordinator.request_resources.remote(**wish), timeout=ANSWER_SECONDS)
            else:
                ray.get(coordinator.cancel_request.remote(who), timeout=ANSWER_SECONDS)
        except Exception as error:  # a bare Exception is what ray.init may raise
            raise HarmonError(f"The Ray head at {self.address} takes no wish ({_first(error)}); try again.") from error

    def drain(self, nodes: Iterable[Node], deadline: float | None) -> None:
        """Have `nodes` take no new work; each leaves when what runs there has ended.

        `deadline`: Unix time at which they are to be stopped, which training and serving are told; None: never.
        """
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until = 0 if deadline is None else int(deadline * 1000)
        for node in nodes:
            accepted, why = self._gcs.drain_node(node.id, reason, "harmon cluster scale", until)
            if not accepted:
                raise HarmonError(f"Ray does not drain the node {node.id} ({why}); look at `harmon cluster status`.")

    def stop(self, nodes: Iterable[Node]) -> None:
        """Take `nodes` out now; Ray starts their tasks and restartable actors again elsewhere."""
        self._gcs.drain_nodes([bytes.fromhex(node.id) for node in nodes])

    def wait(self, come: Callable[[ClusterState], bool], seconds: float) -> ClusterState:
        """The state in which `come(state)` holds, or the last one after `seconds`."""
        deadline = time.monotonic() + seconds
        while not come(state := self.state()) and time.monotonic() < deadline:
            time.sleep(1.0)
        return state


def _node(info: Any, actors: list[str]) -> Node:
    total, used = info.total_resources(), info.used_resources()
    return Node(
        id=info.node_id,
        type=info.ray_node_type_name,
        ip=info.ip_address,
        state=info.node_status,
        head="node:__internal_head__" in total,
        total={name: amount for name, amount in total.items() if not name.startswith("node:")},
        used={name: round(amount, 4) for name, amount in used.items() if amount > 0},
        idle_seconds=(info.resource_usage.idle_time_ms if info.resource_usage else 0) / 1000,
        actors=tuple(sorted(actors)),
    )


def _bundles(demands: Sequence[Any]) -> tuple[Bundles, ...]:
    found = [one for demand in demands for one in demand.bundles_by_count]
    return tuple(Bundles(bundle=dict(one.bundle), count=one.count) for one in found)


def _job(job: Any) -> Job:
    said = job.metadata or {}
    return Job(
        name=job.submission_id or job.job_id,
        status=str(job.status),
        stage=said.get("stage"),
        folder=said.get("folder"),
        entrypoint=job.entrypoint or "",
    )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
