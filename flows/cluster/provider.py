"""What a place has to offer where a Ray cluster can stand, and how its tools are called."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.errors import ConfigurationError, HarmonError

CHECKOUT = Path(__file__).resolve().parents[2]
HEAD = ("python", "-m", "flows.cluster.head")
STDERR = 2  # the file itself: stdout is kept for our own words


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may start."""

    most: int
    """Nodes of it that there may be."""
    instance: str | None
    """What infra/prices.yaml calls it; None: it costs nothing more, being this machine."""
    gpus: int = 0


class Provider(Protocol):
    """Where a cluster stands: local, aws or kuberay."""

    def types(self) -> dict[str, NodeType]:
        """The node types of its file, the head's among them (with a `most` of 0)."""
        ...

    def up(self) -> None:
        """Start the head, or bring a cluster that stands to what its file says."""
        ...

    def down(self) -> None:
        """Take everything down."""
        ...

    def on_head(self, words: Sequence[str]) -> str:
        """What `python -m flows.cluster.head WORDS` prints on the head."""
        ...

    def reach(self) -> tuple[str, ...]:
        """For a person: how jobs are submitted to it."""
        ...


def called(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What `command` prints on stdout.

    Raises:
        ConfigurationError: there is no such program.
        HarmonError: it failed, with its last line on stderr.
    """
    try:
        done = subprocess.run(list(command), env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no program `{command[0]}` on PATH; install it.") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        shown = " ".join(command[:4])
        raise HarmonError(f"`{shown} …` failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def shown(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a `command` that may take minutes, with all that it says on stderr as it says it.

    Raises:
        ConfigurationError: there is no such program.
        HarmonError: it failed.
    """
    try:
        code = subprocess.run(list(command), env=env, stdout=STDERR, stdin=subprocess.DEVNULL).returncode
    except FileNotFoundError:
        raise ConfigurationError(f"There is no program `{command[0]}` on PATH; install it.") from None
    if code:
        raise HarmonError(f"`{' '.join(command[:4])} …` failed with exit code {code}; it said why.")
