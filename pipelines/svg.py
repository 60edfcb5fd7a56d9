"""The marks that charts are made of: SVG elements as `Markup`, styled by the classes of page.css.

Lengths are CSS pixels, y grows downwards. Text is escaped, so labels may come from anywhere.
"""

import math
from collections.abc import Sequence

from pipelines.page import Markup, element, escape

WIDTH = 760.0
"""Width of a chart that stands alone; a narrow screen scales it down."""


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that lie within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def plain(value: float) -> str:
    """A number for an axis: thousands marked, no trailing zeros, at most four significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')


def path(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through points, not filled."""
    return Markup(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{kind}"/>')


def box(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> Markup:
    """A rectangle; `tip` appears when a pointer rests on it."""
    size = f'width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
    inner = element("title", tip) if tip else ""
    return Markup(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}">{inner}</rect>')


def text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
    """One line of text; `anchor` (start, middle, end) is what x means."""
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind or None)


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names beside squares of their colours (class names)."""
    keys = (element("span", element("i", class_=colour), name) for name, colour in entries)
    return element("div", *keys, class_="legend")


def figure(
    title: str, marks: Markup, height: float, legend: Markup | str = "", note: str = "", width: float = WIDTH
) -> Markup:
    """A drawing under its title, with a legend and a note between them."""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px"'
    drawing = Markup(f'<svg {box} role="img" aria-label="{escape(title)}">{marks}</svg>')
    aside = element("div", note, class_="legend") if note else ""
    return element("figure", element("figcaption", title), legend, aside, drawing, class_="chart")
