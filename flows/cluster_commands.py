"""The command `cluster`: Ray on this machine, on AWS or on Kubernetes. Nothing heavy is imported until it runs."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines.errors import ConfigurationError, HarmonError

if TYPE_CHECKING:
    from flows.cluster.provider import Provider
    from flows.cluster.scaling import Outcome
    from flows.cluster.state import ClusterState

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)


def _where(command: F) -> F:
    """The options that say which cluster is meant."""
    for option in (
        click.option("--name", default="harmon", show_default=True, help="Of a local cluster."),
        click.option("--file", type=_PATH, help="The launcher's file (aws) or the RayCluster (kuberay)."),
        click.option(
            "--on",
            "place",
            type=click.Choice(["local", "aws", "kuberay"]),
            default="local",
            show_default=True,
            envvar="HARMON_CLUSTER",
            help="This machine, AWS by Ray's launcher, or Kubernetes by KubeRay.",
        ),
    ):
        command = option(command)
    return command


_kind = click.option("--type", "kind", metavar="TYPE", help="Node type; needed where the cluster has several.")
_wait = click.option("--wait", default=600.0, show_default=True, type=float, help="Seconds for nodes to come or leave.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.group()
def cluster() -> None:
    """Bring a Ray cluster up, see what runs where, scale it, take it down: docs/clusters.md."""


@cluster.command()
@_where
@click.option("--nodes", default=0, show_default=True, type=click.IntRange(0), help="Nodes beside the head.")
@_kind
@_wait
@click.option("--cpus", default=1, show_default=True, type=click.IntRange(1), help="Of each node of a local cluster.")
@click.option("--most", default=8, show_default=True, type=click.IntRange(1), help="Nodes of a local cluster.")
@click.option("--idle-minutes", default=5.0, show_default=True, type=float, help="Local: an unused node then leaves.")
def up(
    place: str,
    file: Path | None,
    name: str,
    nodes: int,
    kind: str | None,
    wait: float,
    cpus: int,
    most: int,
    idle_minutes: float,
) -> None:
    """Start a cluster's head with its autoscaler, and so many nodes; others come when work waits for them."""
    provider = _provider(place, file, name, cpus, most, idle_minutes)
    wanted = _type(provider, kind, nodes) if nodes else ""
    provider.up()
    click.echo("\n".join(provider.reach()))
    if nodes:
        _finish(_scaled(provider, ["--type", wanted, "--count", str(nodes), "--wait", str(wait)]), False)


@cluster.command()
@_where
@_json
def status(place: str, file: Path | None, name: str, as_json: bool) -> None:
    """Nodes, GPUs, what runs where, and what is paid for without being used."""
    from flows.cluster.prices import hourly

    provider = _provider(place, file, name)
    state, prices = _state(provider, ["status"]), hourly(provider.types())
    if as_json:
        cost = {"usd_per_hour": state.cost(prices), "idle_usd_per_hour": state.idle_cost(prices), "prices": prices}
        click.echo(json.dumps({**state.model_dump(mode="json"), "cost": cost}))
    else:
        click.echo("\n".join(state.lines(prices)))


@cluster.command()
@_where
@click.option("--nodes", type=click.IntRange(0), help="So many nodes of the type.")
@click.option("--gpus", type=click.IntRange(0), help="As many nodes of the type as have so many GPUs.")
@click.option("--pending", type=_PATH, metavar="RECIPE", help="As many nodes as RECIPE's shards left to do are worth.")
@click.option("--release", is_flag=True, help="Ask for nothing any more: nodes stay while work needs them.")
@_kind
@_wait
@click.option("--stop", is_flag=True, help="Stop nodes whose work has not ended when --wait is over.")
@click.option("--take-training", is_flag=True, help="Let nodes go on which training workers run.")
@click.option("--follow", is_flag=True, help="With --pending: until nothing is left, then release.")
@click.option("--every", default=30.0, show_default=True, type=float, help="With --follow: seconds between two looks.")
@click.option("--at-most", type=click.IntRange(1), help="With --pending: no more nodes than these.")
@click.option("--shards-per-node", default=4, show_default=True, type=click.IntRange(1), help="With --pending.")
@_json
def scale(
    place: str,
    file: Path | None,
    name: str,
    nodes: int | None,
    gpus: int | None,
    pending: Path | None,
    release: bool,
    kind: str | None,
    wait: float,
    stop: bool,
    take_training: bool,
    follow: bool,
    every: float,
    at_most: int | None,
    shards_per_node: int,
    as_json: bool,
) -> None:
    """Have more nodes, or fewer. Those that go finish their work first; training workers keep theirs.

    What was asked for stays until it is asked otherwise or released. Exit 1: not all is there, or gone, after --wait.
    """
    if sum((nodes is not None, gpus is not None, pending is not None, release)) != 1:
        raise ConfigurationError("Name one of --nodes, --gpus, --pending and --release.")
    if follow and pending is None:
        raise ConfigurationError("--follow belongs to --pending RECIPE.")
    provider = _provider(place, file, name)
    if release:
        for one in [kind] if kind else [name for name, type_ in provider.types().items() if type_.most]:
            _state(provider, ["ask", "--type", one, "--count", "0"])
        click.echo("nothing is kept by request: what nobody uses leaves")
        return
    chosen = _type(provider, kind, nodes or 0, with_gpus=gpus is not None)
    if gpus is not None:
        nodes = math.ceil(gpus / provider.types()[chosen].gpus)
        _type(provider, chosen, nodes)
    if pending is not None:
        most = min(at_most or sys.maxsize, provider.types()[chosen].most)
        if follow:
            _follow(provider, chosen, pending, shards_per_node, most, every)
            return
        nodes = _worth(pending, shards_per_node, most)
    words = ["--type", chosen, "--count", str(nodes), "--wait", str(wait)]
    words += [*(["--stop"] if stop else []), *(["--take-training"] if take_training else [])]
    _finish(_scaled(provider, words), as_json)


@cluster.command()
@_where
@click.option("--take-training", is_flag=True, help="Also when training workers run, or the head does not answer.")
def down(place: str, file: Path | None, name: str, take_training: bool) -> None:
    """Take the whole cluster down; refused while a training runs there."""
    provider = _provider(place, file, name)
    if not take_training:
        try:
            training = [node.id for node in _state(provider, ["status"]).nodes if node.training]
        except ConfigurationError:
            raise
        except HarmonError as error:
            raise HarmonError(f"{error} To take the cluster down all the same, add --take-training.") from None
        if training:
            raise HarmonError(
                f"A training runs on {len(training)} nodes of the cluster; stop it first, or add --take-training."
            )
    provider.down()
    click.echo("the cluster is down")


def _provider(
    place: str, file: Path | None, name: str, cpus: int = 1, most: int = 8, idle_minutes: float = 5.0
) -> Provider:
    if place == "aws":
        from flows.cluster.aws import Aws

        return Aws(file) if file else Aws()
    if place == "kuberay":
        from flows.cluster.kuberay import KubeRay

        return KubeRay(file) if file else KubeRay()
    from flows.cluster.local import Local

    return Local(name, cpus, most, idle_minutes)


def _type(provider: Provider, kind: str | None, nodes: int, with_gpus: bool = False) -> str:
    """The node type that is meant. Raises ConfigurationError where it is not known, or has not so many nodes."""
    from pipelines.settings import nearest

    known = {name: one for name, one in provider.types().items() if one.most and (one.gpus or not with_gpus)}
    if not known:
        raise ConfigurationError("--gpus: the cluster has no type of nodes with GPUs; use --nodes.")
    if kind is None and len(known) > 1:
        raise ConfigurationError(f"The cluster has several kinds of nodes; name one with --type: {', '.join(known)}.")
    chosen = kind or next(iter(known))
    if chosen not in known:
        raise ConfigurationError(f"The cluster has no such node type '{chosen}'; {nearest(chosen, list(known))}.")
    if nodes > known[chosen].most:
        raise ConfigurationError(f"The cluster may have {known[chosen].most} nodes of {chosen} at most, not {nodes}.")
    return chosen


def _state(provider: Provider, words: list[str]) -> ClusterState:
    from flows.cluster.state import ClusterState

    return ClusterState.model_validate_json(_said(provider, words))


def _scaled(provider: Provider, words: list[str]) -> Outcome:
    from flows.cluster.scaling import Outcome

    return Outcome.model_validate_json(_said(provider, ["scale", *words]))


def _said(provider: Provider, words: list[str]) -> str:
    """The head's one line of JSON, among those that launchers write."""
    from flows.cluster.head import MARK

    printed = provider.on_head(words)
    for line in reversed(printed.splitlines()):
        if MARK in line:
            return line.partition(MARK)[2].strip()
    raise HarmonError(
        f"The cluster's head did not answer `{' '.join(words)}`; does its image have this version of harmon? It said: "
        f"{printed.strip()[-200:] or 'nothing'}"
    )


def _finish(outcome: Outcome, as_json: bool) -> None:
    click.echo(outcome.model_dump_json() if as_json else outcome.sentence)
    if not outcome.reached:
        sys.exit(1)


def _worth(recipe: Path, shards_per_node: int, most: int) -> int:
    """The nodes that RECIPE's shards left to do are worth now."""
    from flows.cluster.pending import nodes_for, pending_shards
    from flows.recipe import load_recipe

    left = pending_shards(load_recipe(recipe))
    nodes = nodes_for(sum(left.values()), shards_per_node, most)
    shards = ", ".join(f"{name} {count}" for name, count in left.items() if count) or "none"
    click.echo(f"shards left to do: {shards}; nodes: {nodes}", err=True)
    return nodes


def _follow(provider: Provider, kind: str, recipe: Path, shards_per_node: int, most: int, every: float) -> None:
    """Ask for what is left to do until nothing is, then for nothing: idle nodes leave by themselves, no busy one.

    Each wish holds for three looks and a minute, so that it ends also when this process is killed.
    """
    holds, asked, since = 3 * every + 60, 0, 0.0
    with _terminated_is_interrupted():
        try:
            while nodes := _worth(recipe, shards_per_node, most):
                if nodes != asked or time.monotonic() - since > holds / 3:
                    words = ["--type", kind, "--count", str(nodes), "--seconds", str(holds)]
                    _state(provider, ["ask", *words])
                    asked, since = nodes, time.monotonic()
                time.sleep(every)
        finally:
            _state(provider, ["ask", "--type", kind, "--count", "0"])
            click.echo(f"{kind}: nothing is kept by request any more")


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the block as Ctrl+C does, so that what it holds is let go."""

    def raised(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, raised)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
