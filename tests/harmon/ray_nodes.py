"""A Ray of several nodes on this machine, whose nodes come and go."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_workers import ancestors

from harmon.training.launch import set_ray_environment

MEMORY = 80 << 20  # of each node's object store


class RayNodes:
    """A head without CPUs, so that no worker runs there, and nodes of one CPU each."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    def add(self) -> None:
        """One node more."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY))

    def kill(self, number: int = 1) -> None:
        """kill -9 of the newest nodes, with whatever ran there."""
        for _ in range(number):
            self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def kill_under(self, worker: int) -> None:
        """kill -9 of the node that the process `worker` runs on."""
        above = ancestors(worker)
        (node,) = (node for node in self.nodes if _raylet(node) in above)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def announce_preemption(self, deadline_ms: int) -> None:
        """Say of the newest node what a cloud says before it takes a machine away."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        client = GcsClient(address=self.cluster.gcs_address)
        accepted, why = client.drain_node(self.nodes[-1].node_id, reason, "spot reclaim", deadline_ms)
        assert accepted, why


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    pid: int = raylet.process.pid
    return pid


@contextmanager
def ray_nodes(nodes: int) -> Iterator[RayNodes]:
    """A Ray of `nodes` nodes that RAY_ADDRESS names inside this block."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # for which a dead node that Ray still counts is waited for
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
    }
    set_ray_environment()
    started = RayNodes(nodes)
    os.environ["RAY_ADDRESS"] = started.cluster.address
    try:
        yield started
    finally:
        started.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
