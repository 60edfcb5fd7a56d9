"""The graph of commits across datasets, drawn as SVG: a lane for each dataset, time from left to right."""

import graphlib
from collections.abc import Mapping

from pipelines import svg
from pipelines.dataset import Dataset
from pipelines.lineage import Lineage, Vertex, lineage
from pipelines.page import Markup, Section, code, count, element, join, table

BOX, TALL, ACROSS, LANE = 138.0, 44.0, 34.0, 78.0  # px: width and height of a commit, gap between two, lane height
LABEL = 120.0  # px for the datasets' names


def lineage_section(dataset: Dataset) -> Section:
    """The lineage of `dataset`: what it was made from, its own commits, what was made from it."""
    graph = lineage(dataset)
    lead = "Each lane is a dataset, each box a commit; a line leads from what was read to what was made from it."
    rows = [
        [vertex.dataset, vertex.number, *_said(vertex), code(vertex.commit.content_hash[:12] if vertex.commit else "")]
        for vertex in graph.vertices
    ]
    listing = table(["dataset", "commit", "step", "rows in", "rows out", "content"], rows)
    return Section("Lineage", [draw(graph, dataset.name), listing], lead)


def draw(graph: Lineage, own: str) -> Markup:
    """The graph; the lanes of `own` are set off."""
    depth = _depths(graph)
    lanes = {name: index for index, name in enumerate(graph.datasets)}
    width = max(svg.WIDTH, LABEL + (max(depth.values(), default=0) + 1) * (BOX + ACROSS))
    height = len(lanes) * LANE + 8

    def corner(place: tuple[str, int]) -> tuple[float, float]:
        return LABEL + depth[place] * (BOX + ACROSS), lanes[place[0]] * LANE + 4 + (LANE - TALL) / 2

    marks: list[Markup] = []
    for name, index in lanes.items():
        if index % 2 == 0:
            marks.append(svg.box(0, index * LANE + 4, width, LANE, "lane"))
        marks.append(svg.text(8, index * LANE + 8 + LANE / 2, name[:18], "strong" if name == own else ""))
    for start, end in graph.edges:
        (x1, y1), (x2, y2) = corner(start), corner(end)
        x1, y1, y2 = x1 + BOX, y1 + TALL / 2, y2 + TALL / 2
        middle = (x1 + x2) / 2
        marks.append(
            Markup(
                f'<path class="thread" d="M{x1:.1f} {y1:.1f} C{middle:.1f} {y1:.1f} {middle:.1f} {y2:.1f} '
                f'{x2:.1f} {y2:.1f}"/>'
            )
        )
    for vertex in graph.vertices:
        x, y = corner((vertex.dataset, vertex.number))
        step, rows_in, rows_out = _said(vertex)
        kind = "knot bad" if vertex.commit is None else "knot own" if vertex.dataset == own else "knot"
        marks.append(svg.box(x, y, BOX, TALL, kind, f"{vertex.dataset} commit {vertex.number}: {step}"))
        marks.append(svg.text(x + 9, y + 18, f"{vertex.number}  {step}"[:20], "strong"))
        below = "not in this folder" if vertex.commit is None else f"{count(rows_out)} of {count(rows_in)} rows"
        marks.append(svg.text(x + 9, y + 35, below))
    return element("div", svg.figure("Commits and what they were made from", join(*marks), height, width=width))


def _said(vertex: Vertex) -> tuple[str, int, int]:
    commit = vertex.commit
    return (commit.step, commit.rows_in, commit.rows_out) if commit else ("unreachable", 0, 0)


def _depths(graph: Lineage) -> Mapping[tuple[str, int], int]:
    """Longest way from a first commit to each."""
    before: dict[tuple[str, int], set[tuple[str, int]]] = {(v.dataset, v.number): set() for v in graph.vertices}
    for start, end in graph.edges:
        before[end].add(start)
    depth: dict[tuple[str, int], int] = {}
    for place in graphlib.TopologicalSorter(before).static_order():
        depth[place] = max((depth[start] + 1 for start in before[place]), default=0)
    return depth
