"""What `harmon evaluate` found out, as one JSON and one page (harmon.evaluation.report_page)."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harmon.evaluation.comparison import Difference
from harmon.evaluation.measured import Measured
from harmon.evaluation.measures import COVERED, RESAMPLES, SEED
from harmon.evaluation.subject import Subject

VERSION = 1
JSON, PAGE = "report.json", "report.html"


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint's benchmarks, and where a second one was named, that one's beside them."""

    subject: Subject
    measured: tuple[Measured, ...]
    other: Subject | None = None
    others: tuple[Measured, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def without_number(self) -> list[Measured]:
        """Benchmarks that have no number."""
        return [one for one in (*self.measured, *self.others) if not one.numbers]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "version": VERSION,
            "checkpoint": _identity(self.subject),
            "benchmarks": [one.report() for one in self.measured],
            "intervals": {"percent": COVERED, "resamples": RESAMPLES, "seed": SEED},
            "other_checkpoint": _identity(self.other) if self.other else None,
            "other_benchmarks": [one.report() for one in self.others],
            "differences": [one.report() for one in self.differences],
        }


def write_evaluation(evaluation: Evaluation, out: Path) -> tuple[Path, Path]:
    """OUT/report.json and OUT/report.html, each appearing whole; earlier ones are replaced."""
    from harmon.evaluation.report_page import evaluation_page

    texts = {
        out / JSON: json.dumps(evaluation.report(), indent=1, allow_nan=False) + "\n",
        out / PAGE: evaluation_page(evaluation).render(),
    }
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return out / JSON, out / PAGE


def shown_value(value: float, unit: str) -> str:
    """A measure's value as papers print it: 87.6, 1148, 0.71."""
    if value != value:
        return "none"
    digits = {"%": 1, "points": 0}.get(unit, 2)
    return f"{value:.{digits}f}"


def lines(measured: Sequence[Measured]) -> list[str]:
    """One line a benchmark, for a terminal."""
    found = []
    for one in measured:
        part = f" (a part: {one.items:,} items)" if one.partial else ""
        if not one.numbers:
            why = f"no number yet: {one.missing.what} is missing" if one.missing else f"no number: {one.refused}"
            found.append(f"{one.chosen.benchmark}{part}: {why}")
            continue
        first = one.numbers[0]
        bounds = ""
        if first.uncertain:
            low, high = (shown_value(bound, first.measure.unit) for bound in (first.interval.low, first.interval.high))
            bounds = f" [{low}, {high}]"
        value = shown_value(first.interval.value, first.measure.unit)
        paper = f"; the paper’s {shown_value(first.paper, first.measure.unit)}" if first.paper is not None else ""
        found.append(f"{one.chosen.benchmark}{part}: {first.measure.name} {value}{bounds}{paper}")
    return found


def _identity(subject: Subject) -> dict[str, Any]:
    identity = subject.identity
    return {
        "path": str(subject.checkpoint),
        "average": subject.named.average,
        "weights": identity.weights,
        "stage": identity.stage or None,
        "step": identity.step or None,
        "px": identity.px,
        "published_size": identity.size,
        "dtype": subject.dtype,
    }
