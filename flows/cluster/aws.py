"""A Ray cluster on AWS by Ray's own launcher: infra/aws/cluster.yaml."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.cluster.provider import CHECKOUT, HEAD, NodeType, called
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
            name: NodeType(int(one.get("max_workers", 0)), one["node_config"]["InstanceType"])
            for name, one in known.items()
        }

    def up(self) -> None:
        """Start the head, or bring a standing cluster to the file; its workers come when they are asked for."""
        self._ray("up", "--yes", str(self.file))

    def down(self) -> None:
        """Terminate every instance."""
        self._ray("down", "--yes", str(self.file))

    def on_head(self, words: Sequence[str]) -> str:
        """Over SSH, in the head's container."""
        return self._ray("exec", str(self.file), shlex.join([*HEAD, *words]))

    def reach(self) -> tuple[str, ...]:
        """Through SSH, as Ray's port belongs on no public address."""
        return (
            f"keep open:            ray dashboard {self.file}",
            "training as a job:    --set training.launch.submit=http://127.0.0.1:8265",
        )

    def _ray(self, *words: str) -> str:
        """Ray's launcher; where a shell has none on PATH, the one beside this Python."""
        path = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
        return called(["ray", *words], os.environ | {"PATH": path})
