"""A Ray cluster on Kubernetes by the KubeRay operator: infra/kuberay/raycluster.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.cluster.provider import CHECKOUT, HEAD, NodeType, called
from pipelines.settings import read_yaml

FILE = CHECKOUT / "infra" / "kuberay" / "raycluster.yaml"
HEAD_GROUP = "headgroup"  # as KubeRay calls it
INSTANCE = "node.kubernetes.io/instance-type"
START_SECONDS = 900


@dataclass(frozen=True)
class KubeRay:
    """The RayCluster that a file describes."""

    file: Path = FILE

    def types(self) -> dict[str, NodeType]:
        """The RayCluster's worker groups; instances are those that their pods select."""
        spec = read_yaml(self.file)["spec"]
        groups = {
            one["groupName"]: NodeType(int(one["maxReplicas"]), _instance(one)) for one in spec["workerGroupSpecs"]
        }
        return {HEAD_GROUP: NodeType(0, _instance(spec["headGroupSpec"])), **groups}

    def up(self) -> None:
        """Apply the file and wait for the head; workers come when they are asked for."""
        called(["kubectl", "apply", "-f", str(self.file)])
        ready = ["--for=condition=HeadPodReady", f"--timeout={START_SECONDS}s"]
        called([*self._kubectl(), "wait", f"raycluster/{self._name}", *ready])

    def down(self) -> None:
        """Delete what the file describes; volumes stay."""
        called(["kubectl", "delete", "--ignore-not-found", "-f", str(self.file)])

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


def _instance(group: dict[str, Any]) -> str | None:
    selector = group["template"]["spec"].get("nodeSelector", {})
    return str(selector[INSTANCE]) if INSTANCE in selector else None
