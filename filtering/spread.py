"""How a column's values are spread, over any number of rows: 65,536 counters by the first 16 bits of a float32.

So a value is known to one part in 128 of itself: enough to draw, and to say what a threshold would keep.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from filtering.cut import orders, score_of
from pipelines import svg
from pipelines.page import Markup, join
from pipelines.svg import WIDTH

LADDER = (0.5, 0.2, 0.1, 0.05, 0.01)  # shares kept of which the threshold is told
BARS = 40


@dataclass
class Spread:
    """Counters of one column."""

    name: str
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    missing: int = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """More values; NaN is counted as missing."""
        there = values[~np.isnan(values)].astype(np.float32)
        self.missing += len(values) - len(there)
        which = orders(there, np.zeros(len(there), np.uint64)) >> np.uint64(48)
        self.counts += np.bincount(which.astype(np.int64), minlength=1 << 16)

    @property
    def total(self) -> int:
        """Values that are there."""
        return int(self.counts.sum())

    def keeping(self, share: float) -> float:
        """The threshold, to one part in 128, at or above which this share of the values lies."""
        from_above = np.cumsum(self.counts[::-1])
        step = int(np.searchsorted(from_above, max(1, round(share * self.total))))
        return score_of(((1 << 16) - 1 - step) << 48)

    def share_above(self, threshold: float) -> float:
        """About which share of the values lies at or above `threshold`."""
        own = int(orders(np.array([threshold], np.float32), np.zeros(1, np.uint64))[0] >> np.uint64(48))
        return float(self.counts[own:].sum()) / max(1, self.total)

    def lines(self) -> list[str]:
        """What thresholds would keep, said before one is applied."""
        if not self.total:
            return [f"{self.name}: no values"]
        steps = ", ".join(f"{100 * share:g}% needs >= {self.keeping(share):.3g}" for share in LADDER)
        return [f"{self.name}: {self.total:,} values, {self.missing:,} missing; keeping {steps}"]

    def chart(self, cut: float | None) -> Markup:
        """A histogram with the cut drawn in it; both sides are counted."""
        if not self.total:
            return svg.figure(self.name, svg.text(8, 24, "no values"), 40.0)
        lowest, highest = self.keeping(1.0), self.keeping(0.0)
        # a few far values would flatten everything else: the outer thousandths share the first and last bars
        low, high = self.keeping(0.999), self.keeping(0.001)
        if not high > low:
            low, high = lowest, highest + abs(highest) / 100 + 1e-6
        inside = np.flatnonzero(self.counts)
        middles = np.array([score_of(int(one) << 48) for one in inside])
        bars = np.clip(((middles - low) / (high - low) * BARS).astype(int), 0, BARS - 1)
        heights = np.bincount(bars, self.counts[inside], BARS)
        height, bottom, left, right = 220.0, 180.0, 8.0, WIDTH - 8
        wide = (right - left) / BARS
        marks = []
        for bar, number in enumerate(heights.tolist()):
            begin, end = low + bar * (high - low) / BARS, low + (bar + 1) * (high - low) / BARS
            tall = (bottom - 24) * number / heights.max()
            kind = "lost" if cut is not None and end <= cut else "kept"
            marks.append(svg.box(left + bar * wide, bottom - tall, wide - 1, tall, kind, f"{begin:.3g}: {number:,.0f}"))
        for value in svg.ticks(low, high, 8):
            marks.append(svg.text(left + (value - low) / (high - low) * (right - left), bottom + 18, svg.plain(value)))
        if cut is not None and low <= cut <= high:
            at = left + (cut - low) / (high - low) * (right - left)
            told = f"cut {cut:.4g}: {100 * self.share_above(cut):.3g}% of the values lie at or above it"
            marks += [svg.line(at, 8, at, bottom, "rule"), svg.text(at + 5, 16, told, "strong")]
        marks.append(svg.line(left, bottom, right, bottom, "axis"))
        return svg.figure(self.name, join(*marks), height)
