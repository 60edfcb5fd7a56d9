"""Puts the page together and writes it."""

import os
from pathlib import Path

from flows.report.data import captions, funnels, scores
from flows.report.inputs import ReportInput
from flows.report.provenance import departures, identities, times, versions
from flows.report.results import answers, pictures, results
from flows.report.training import training
from pipelines.page import Page

PARTS = (
    results,
    pictures,
    answers,
    funnels,
    captions,
    scores,
    training,
    departures,
    identities,
    times,
    versions,
)


def build_report(source: ReportInput, out: Path | None = None) -> Path:
    """Write the report to `out` (None: report.html in the run folder) and return its path.

    The page is self-contained. Missing parts of the run are named on it. Raises HarmonError where a part is
    damaged.
    """
    out = out or source.run / "report.html"
    page = Page(
        title=source.title,
        kicker="Harmon · report of a run",
        summary="From lists of links to a model that draws what it is told and says what it sees: what went "
        "in, what came out, and what it is worth.",
        sections=[part(source) for part in PARTS],
        footer="Every number on this page was counted by the run it describes.",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    attempt = out.with_name(f".{out.name}.{os.getpid()}.part")
    attempt.write_text(page.render(), encoding="utf-8")
    attempt.replace(out)
    return out
