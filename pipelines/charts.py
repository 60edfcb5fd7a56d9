"""Charts for `pipelines.page`: inline SVG drawn from plain numbers, in the page's own colours, no scripts.

Every chart is a figure with its title, and says its numbers in text as well (labels, or tooltips on hover).
Drawing units are CSS pixels of a chart WIDTH wide (PANEL where two stand side by side); a narrow screen
scales it down.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipelines import svg
from pipelines.page import Markup, count, element, join, percent
from pipelines.svg import WIDTH

PANEL = 452.0
SERIES_COLOURS = 5
Placing = Callable[[float, float], tuple[float, float]]
MOST_POINTS = 240
"""Points drawn of one series: longer ones are drawn as means of equal runs, so that a page stays small."""


@dataclass(frozen=True)
class Series:
    """One line: `points` are (x, y) in the order of x. `smooth` > 1 draws the points faintly and over them
    their running mean over that many points."""

    name: str
    points: Sequence[tuple[float, float]]
    smooth: int = 1


@dataclass(frozen=True)
class Passage:
    """One step that rows pass through: how many came, how many went on. `lost` says why the others did
    not."""

    label: str
    rows_in: int
    rows_out: int
    lost: str = ""


@dataclass(frozen=True)
class Measure:
    """A share in [0, 1] of `n` cases beside what costs nothing to reach (`baseline`, named by
    `baseline_name`)."""

    label: str
    share: float
    baseline: float
    n: int
    baseline_name: str = "chance"


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    rules: Sequence[tuple[float, str]] = (),
    width: float = WIDTH,
) -> Markup:
    """Lines over two linear axes; `rules` are named horizontal lines (a goal, a chance level). Values that
    are not finite are left out."""
    drawn = [(line, _finite(line.points)) for line in series]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return svg.figure(title, element("text", "no points", x=8, y=24), 40.0)
    height = 250.0
    left, right, top, bottom = 52.0, width - 8, 10.0, height - 40
    xs = [x for _, points in drawn for x, _ in points]
    ys = sorted(y for _, points in drawn for _, y in points)
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _y_range(ys, [y for y, _ in rules])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (min(y, y_high) - y_low) / (y_high - y_low)
        return left + across * (right - left), bottom - up * (bottom - top)

    marks: list[Markup] = []
    for value in svg.ticks(y_low, y_high):
        y = place(x_low, value)[1]
        marks += [svg.line(left, y, right, y, "grid"), svg.text(left - 7, y + 4, svg.plain(value), anchor="end")]
    for value in svg.ticks(x_low, x_high, 5 if width < WIDTH else 8):
        x = place(value, y_low)[0]
        marks += [
            svg.line(x, bottom, x, bottom + 4, "axis"),
            svg.text(x, bottom + 18, svg.plain(value), anchor="middle"),
        ]
    marks += [svg.line(left, bottom, right, bottom, "axis"), svg.text(right, height - 6, x_label, anchor="end")]
    for index, (line, points) in enumerate(drawn):
        marks += _curve(line, points, index % SERIES_COLOURS + 1, place)
    for value, name in rules:
        y = place(x_low, value)[1]
        marks += [svg.line(left, y, right, y, "rule"), svg.text(right, y - 5, name, "strong", "end")]
    names = [(line.name, f"c{index % SERIES_COLOURS + 1}") for index, (line, _) in enumerate(drawn)]
    legend = svg.legend(names) if len(names) > 1 else ""
    return svg.figure(title, join(*marks), height, legend, y_label, width)


def histogram(
    title: str, values: Sequence[float], x_label: str, threshold: float | None = None, bins: int = 36
) -> Markup:
    """How `values` are spread. With a threshold, those below it are drawn as lost and both sides are
    counted."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return svg.figure(title, element("text", "no values", x=8, y=24), 40.0)
    low, high, bins = _bins(finite[0], finite[-1], threshold, bins)
    width = (high - low) / bins
    counts = {True: [0] * bins, False: [0] * bins}
    for value in finite:
        counts[threshold is None or value >= threshold][min(bins - 1, int((value - low) / width))] += 1
    tallest = max(kept + lost for kept, lost in zip(counts[True], counts[False], strict=True))
    height, left, right, top, bottom = 220.0, 40.0, WIDTH - 8, 28.0, 180.0

    def across(value: float) -> float:
        return left + (value - low) / (width * bins) * (right - left)

    marks: list[Markup] = []
    for value in svg.ticks(0, tallest, 4):
        if value == int(value):
            y = bottom - value / tallest * (bottom - top)
            marks += [
                svg.line(left, y, right, y, "grid"),
                svg.text(left - 7, y + 4, count(int(value)), anchor="end"),
            ]
    for index in range(bins):
        start, end = across(low + index * width) + 0.5, across(low + (index + 1) * width) - 0.5
        base = bottom
        for kept in (False, True):
            number = counts[kept][index]
            rise = number / tallest * (bottom - top)
            if number:
                tip = f"{svg.plain(low + index * width)} to {svg.plain(low + (index + 1) * width)}: {count(number)}"
                marks.append(svg.box(start, base - rise, end - start, rise, "kept" if kept else "lost", tip))
            base -= rise
    marks.append(svg.line(left, bottom, right, bottom, "axis"))
    for value in svg.ticks(low, high, 7):
        marks.append(svg.text(across(value), bottom + 18, svg.plain(value), anchor="middle"))
    marks.append(svg.text(right, height - 4, x_label, anchor="end"))
    if threshold is not None:
        x, side = across(threshold), "end" if across(threshold) > WIDTH / 2 else "start"
        below, above = count(sum(counts[False])), count(sum(counts[True]))
        said = f"threshold {svg.plain(threshold)}: {below} below, {above} kept"
        marks += [
            svg.line(x, 8, x, bottom, "rule"),
            svg.text(x + (6 if side == "start" else -6), 16, said, "strong", side),
        ]
    return svg.figure(title, join(*marks), height)


def funnel(title: str, passages: Sequence[Passage]) -> Markup:
    """Rows through successive steps: one bar a step as wide as what came in, its lost end marked, and the
    kept part flowing into the next bar."""
    left, right, bar, gap = 150.0, WIDTH - 150, 24.0, 22.0
    most = max((passage.rows_in for passage in passages), default=0) or 1
    marks: list[Markup] = []
    for index, passage in enumerate(passages):
        top = 6 + index * (bar + gap)
        came = passage.rows_in / most * (right - left)
        went = passage.rows_out / most * (right - left)
        lost = passage.rows_in - passage.rows_out
        marks.append(svg.text(left - 10, top + 16, passage.label, "strong", "end"))
        marks.append(svg.box(left, top, went, bar, "kept", f"{passage.label}: {count(passage.rows_out)} went on"))
        if lost > 0:
            tip = f"{count(lost)} left" + (f": {passage.lost}" if passage.lost else "")
            marks.append(svg.box(left + went, top, max(1.5, came - went), bar, "lost", tip))
        shown = f"{count(passage.rows_out)} of {count(passage.rows_in)}" + (f"  −{count(lost)}" if lost else "")
        marks.append(svg.text(left + max(came, went + 1.5) + 8, top + 16, shown))
        if index + 1 < len(passages):
            onward = passages[index + 1].rows_in / most * (right - left)
            corners = [
                (left, top + bar),
                (left + went, top + bar),
                (left + onward, top + bar + gap),
                (left, top + bar + gap),
            ]
            marks.append(element("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), class_="flow"))
    return svg.figure(title, join(*marks), 12 + len(passages) * (bar + gap) - gap)


def measures(title: str, rows: Sequence[Measure]) -> Markup:
    """One bar a share, with a mark where its baseline lies; each row says share, count and baseline in
    words."""
    left, right, bar, pitch = 190.0, WIDTH - 190, 16.0, 34.0
    marks: list[Markup] = []
    for index, row in enumerate(rows):
        top = 4 + index * pitch
        across = left + row.baseline * (right - left)
        marks += [
            svg.text(left - 10, top + 13, row.label, "strong", "end"),
            svg.box(left, top, right - left, bar, "ghost"),
            svg.box(
                left,
                top,
                row.share * (right - left),
                bar,
                "f1",
                f"{row.label}: {percent(row.share, 1)} of {row.n}",
            ),
            svg.line(across, top - 3, across, top + bar + 3, "rule"),
            svg.text(right + 8, top + 7, f"{percent(row.share)} of {count(row.n)}", "strong"),
            svg.text(right + 8, top + 21, f"{row.baseline_name} {percent(row.baseline)}"),
        ]
    return svg.figure(title, join(*marks), 8 + len(rows) * pitch)


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> Markup:
    """One bar a row: label, length (any unit, at least 0) and the text that says it."""
    left, right, bar, pitch = 190.0, WIDTH - 110, 15.0, 25.0
    most = max((length for _, length, _ in rows), default=0.0) or 1.0
    marks: list[Markup] = []
    for index, (label, length, text) in enumerate(rows):
        top = 4 + index * pitch
        reach = max(1.0, length / most * (right - left))
        marks += [
            svg.text(left - 10, top + 12, label, anchor="end"),
            svg.box(left, top, reach, bar, "kept", f"{label}: {text}"),
            svg.text(left + reach + 8, top + 12, text, "strong"),
        ]
    return svg.figure(title, join(*marks), 8 + len(rows) * pitch)


def panels(charts: Iterable[Markup]) -> Markup:
    """Charts side by side where there is room."""
    return element("div", *charts, class_="panels")


def _curve(line: Series, points: list[tuple[float, float]], colour: int, place: Placing) -> list[Markup]:
    shown = _running_mean(points, line.smooth)
    strong = svg.path([place(x, y) for x, y in _thinned(shown)], f"line s{colour}")
    if line.smooth <= 1:
        return [strong]
    return [svg.path([place(x, y) for x, y in _thinned(points)], f"line faint s{colour}"), strong]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _y_range(ordered: Sequence[float], also: Sequence[float]) -> tuple[float, float]:
    """From the least value to the 99.5th percentile, so that one first spike does not flatten a curve."""
    top = ordered[min(len(ordered) - 1, math.ceil(0.995 * (len(ordered) - 1)))]
    low, high = min([ordered[0], *also]), max([top, *also])
    if 0 <= low < 0.35 * high:
        low = 0.0
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def _bins(low: float, high: float, threshold: float | None, bins: int) -> tuple[float, float, int]:
    """Ends and number of the bins, moved so that a threshold lies between two of them."""
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    width = (high - low) / bins or max(1.0, abs(low))
    if threshold is None:
        return low, low + bins * width, bins
    below = math.ceil((threshold - low) / width)
    above = max(1, math.ceil((high - threshold) / width))
    return threshold - below * width, threshold + above * width, below + above


def _running_mean(points: list[tuple[float, float]], over: int) -> list[tuple[float, float]]:
    means: list[tuple[float, float]] = []
    total = 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - over][1] if index >= over else 0.0)
        means.append((x, total / min(index + 1, over)))
    return means


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    runs = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
