"""A Ray cluster on Kubernetes by the KubeRay operator: infra/kuberay/raycluster.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.cluster.provider import CHECKOUT, HEAD, NodeType, called, shown
from pipelines.settings import read_yaml

FILE = CHECKOUT / "infra" / "kuberay" / "raycluster.yaml"
HEAD_GROUP = "headgroup"  # as KubeRay calls it
GPU = "nvidia.com/gpu"
INSTANCE = "node.kubernetes.io/instance-type"
START_SECONDS = 900


@dataclass(frozen=True)
class KubeRay:
    """The RayCluster that a file describes."""

    file: Path = FILE

    def types(self) -> dict[str, NodeType]:
        """The RayCluster's worker groups; instances are those that their pods select."""
        spec = read_yaml(self.file)["spec"]
        groups = {one["groupName"]: _type(one, int(one["maxReplicas"])) for one in spec["workerGroupSpecs"]}
        return {HEAD_GROUP: _type(spec["headGroupSpec"], 0), **groups}

    def up(self) -> None:
        """Apply the file and wait for the head; workers come when they are asked for."""
        shown(["kubectl", "apply", "-f", str(self.file)])
        ready = ["--for=condition=HeadPodReady", f"--timeout={START_SECONDS}s"]
        shown([*self._kubectl(), "wait", f"raycluster/{self._name}", *ready])

    def down(self) -> None:
        """Delete what the file describes; volumes stay."""
        shown(["kubectl", "delete", "--ignore-not-found", "-f", str(self.file)])

    def on_head(self, words: Sequence[str]) -> str:
        """In the head's container."""
        return called([*self._kubectl(), "exec", f"svc/{self._service}", "-c", "ray-head", "--", *HEAD, *words])

    def reach(self) -> tuple[str, ...]:
        """Through Kubernetes, or from a pod of the namespace."""
        return (
            f"keep open:            {' '.join(self._kubectl())} port-forward svc/{self._service} 8265",
            "training as a job:    --set training.launch.submit=http://127.0.0.1:8265",
            f"from a pod:           --set training.launch.submit=http://{self._service}:8265",
        )

    @property
    def _metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = read_yaml(self.file)["metadata"]
        return found

    @property
    def _name(self) -> str:
        return str(self._metadata["name"])

    @property
    def _service(self) -> str:
        return f"{self._name}-head-svc"

    def _kubectl(self) -> list[str]:
        return ["kubectl", "-n", str(self._metadata.get("namespace", "default"))]


def _type(group: dict[str, Any], most: int) -> NodeType:
    """Its instances are those that its pods select; a name without a price where they take any machine."""
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"].get("limits", {})
    return NodeType(most, str(pod.get("nodeSelector", {}).get(INSTANCE, "any machine")), int(limits.get(GPU, 0)))
