"""Which dataset came from which: the graph of commits that the manifests of one folder of datasets draw."""

import contextlib
import graphlib
from dataclasses import dataclass
from typing import Any

from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Commit
from pipelines.storage import open_store


@dataclass(frozen=True)
class Vertex:
    """One commit of one dataset; `commit` is None where the dataset it is said to be in cannot be read."""

    dataset: str
    number: int
    commit: Commit | None


@dataclass(frozen=True)
class Lineage:
    """Commits and what each was made from.

    `datasets` are names, every one after those it was made from. `edges` lead from a commit that was read, or
    that came before, to the commit made from it, as (dataset, number).
    """

    datasets: tuple[str, ...]
    vertices: tuple[Vertex, ...]
    edges: tuple[tuple[tuple[str, int], tuple[str, int]], ...]


def beside(dataset: Dataset, name: str) -> Dataset:
    """The dataset of this name in the same folder, which may be empty."""
    return Dataset(dataset.root.absolute().parent / name)


def neighbours(dataset: Dataset) -> list[Dataset]:
    """The other datasets in the same folder, by name; a local folder that may not be looked into is none."""
    names = open_store(dataset.root.absolute().parent).folders()
    found: list[Dataset] = []
    for other in (beside(dataset, name) for name in names if name != dataset.name):
        with contextlib.suppress(PermissionError):  # as other users' folders in /tmp
            if other.commit_numbers():
                found.append(other)
    return found


def made_from(dataset: Dataset) -> set[str]:
    """Names of the other datasets that the commits of a dataset read."""
    return {entry.dataset for commit in dataset.commits() for entry in commit.inputs} - {dataset.name}


def _born_from(dataset: Dataset) -> set[str]:
    """Names of the other datasets that its first commit read. Later commits may read what was made from it."""
    first = next(iter(dataset.commits()), None)
    return {entry.dataset for entry in first.inputs} - {dataset.name} if first else set()


def upstream(dataset: Dataset) -> list[Dataset]:
    """Every dataset of the folder that `dataset` was made from, directly or not, each after its own sources."""
    return _closure(dataset, _sources(dataset))


def derived(dataset: Dataset) -> list[Dataset]:
    """Every dataset of the folder that was made from `dataset`, directly or not, each after its own sources."""
    users: dict[str, set[str]] = {}
    for name, sources in _sources(dataset).items():
        for source in sources:
            users.setdefault(source, set()).add(name)
    return _closure(dataset, users)


def lineage(dataset: Dataset) -> Lineage:
    """The commits of `dataset`, of everything it was made from, and of everything made from it; of other datasets
    that those were made from too, the commits that were read."""
    family = {one.name: one for one in [*upstream(dataset), dataset, *derived(dataset)]}
    others = {one.name: one for one in neighbours(dataset)}
    vertices = {(name, c.number): Vertex(name, c.number, c) for name, one in family.items() for c in one.commits()}
    edges: list[tuple[tuple[str, int], tuple[str, int]]] = []
    for place, vertex in list(vertices.items()):
        assert vertex.commit is not None
        if vertex.number > 0:
            edges.append(((vertex.dataset, vertex.number - 1), place))
        for entry in vertex.commit.inputs:
            read = (entry.dataset, entry.commit)
            if entry.dataset != vertex.dataset:
                vertices.setdefault(read, Vertex(*read, _commit(others.get(entry.dataset), entry.commit)))
                edges.append((read, place))
    names = {vertex.dataset for vertex in vertices.values()}
    known = others | family
    sources = {name: _born_from(known[name]) & names if name in known else set() for name in names}
    before: dict[tuple[str, int], set[tuple[str, int]]] = {place: set() for place in vertices}
    for start, end in edges:
        before[end].add(start)
    _prepare(graphlib.TopologicalSorter(before), dataset)
    ordered = tuple(_ordered(sources, dataset))
    rank = {name: position for position, name in enumerate(ordered)}
    listed = sorted(vertices.values(), key=lambda vertex: (rank[vertex.dataset], vertex.number))
    return Lineage(ordered, tuple(listed), tuple(edge for edge in edges if edge[0] in vertices))


def _commit(dataset: Dataset | None, number: int) -> Commit | None:
    """The commit of this number, or None where it cannot be found."""
    return dataset.commit(number) if dataset is not None and number in dataset.commit_numbers() else None


def _sources(dataset: Dataset) -> dict[str, set[str]]:
    """What each dataset of the folder was made from, by name."""
    return {one.name: made_from(one) for one in [dataset, *neighbours(dataset)]}


def _closure(dataset: Dataset, leads_to: dict[str, set[str]]) -> list[Dataset]:
    """The datasets of the folder that `leads_to` reaches from `dataset`, without it, sources first."""
    known = {one.name: one for one in neighbours(dataset)}
    reached: set[str] = set()
    pending = [dataset.name]
    while pending:
        for name in leads_to.get(pending.pop(), set()) - reached:
            reached.add(name)
            pending.append(name)
    found = [known[name] for name in reached if name in known]
    order = _ordered({one.name: _born_from(one) & reached for one in found}, dataset)
    return [known[name] for name in order if name in known]


def _ordered(sources: dict[str, set[str]], dataset: Dataset) -> list[str]:
    """Names with every one after its sources, otherwise by name. Raises HarmonError for a circle."""
    sorter = graphlib.TopologicalSorter(sources)
    order: list[str] = []
    _prepare(sorter, dataset)
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def _prepare(sorter: "graphlib.TopologicalSorter[Any]", dataset: Dataset) -> None:
    try:
        sorter.prepare()
    except graphlib.CycleError as problem:
        circle = " from ".join(str(name) for name in problem.args[1])
        raise HarmonError(
            f"the manifests beside {dataset.root} say that {circle}: nothing is made from itself; run `harmon audit`"
        ) from None
