"""A Ray cluster on AWS by Ray's own launcher: infra/aws/cluster.yaml."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.cluster.provider import CHECKOUT, HEAD, NodeType, called, shown
from pipelines.settings import read_yaml

FILE = CHECKOUT / "infra" / "aws" / "cluster.yaml"


@dataclass(frozen=True)
class Aws:
    """The cluster that a launcher file describes."""

    file: Path = FILE

    def types(self) -> dict[str, NodeType]:
        """The launcher file's node types."""
        known = read_yaml(self.file)["available_node_types"]
        return {
            name: NodeType(
                int(one.get("max_workers", 0)), one["node_config"]["InstanceType"], int(one["resources"].get("GPU", 0))
            )
            for name, one in known.items()
        }

    def up(self) -> None:
        """Start the head, or bring a standing cluster to the file; its workers come when they are asked for."""
        shown(["ray", "up", "--yes", str(self.file)], _environment())

    def down(self) -> None:
        """Terminate every instance."""
        shown(["ray", "down", "--yes", str(self.file)], _environment())

    def on_head(self, words: Sequence[str]) -> str:
        """Over SSH, in the head's container."""
        return called(["ray", "exec", str(self.file), shlex.join([*HEAD, *words])], _environment())

    def reach(self) -> tuple[str, ...]:
        """Through SSH, as Ray's port belongs on no public address."""
        return (
            f"keep open:            ray dashboard {self.file}",
            "training as a job:    --set training.launch.submit=http://127.0.0.1:8265",
        )


def _environment() -> dict[str, str]:
    """Where a shell has no `ray` on PATH, the one beside this Python is meant."""
    return os.environ | {"PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"}
