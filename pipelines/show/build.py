"""Puts a dataset's page together and writes it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.charts import Passage, funnel, histogram
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import FORGET, IMAGES, REJECTS, SOURCE, Commit
from pipelines.page import (
    Headline,
    Markup,
    Page,
    Section,
    code,
    count,
    element,
    facts,
    fold,
    headlines,
    note,
    paragraph,
    table,
)
from pipelines.show.gallery import gallery
from pipelines.show.lineage_chart import lineage_section
from pipelines.show.samples import numbers, numeric_columns, shown_groups

MOST_SAMPLES = 2000
MEASURED = 20_000  # rows that a histogram is drawn from, about
REASON_EXAMPLES = 4
SCRIPT = Path(__file__).with_name("search.js")


@dataclass(frozen=True)
class ShowSettings:
    """What goes onto the page."""

    samples: int = 200
    """Samples in the gallery; a thumbnail is some 6 kB."""
    lineage: bool = False
    """Whether to draw the graph of commits across the datasets of the folder."""

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise ConfigurationError(f"--samples {self.samples} makes no page; choose 1 to {MOST_SAMPLES}")


def build_page(dataset: Dataset, settings: ShowSettings) -> str:
    """The page as one self-contained HTML document. Raises HarmonError where a file cannot be read."""
    head = dataset.head
    if head is None:
        raise HarmonError(f"there is no dataset at {dataset.root}; name the folder that holds its manifest/")
    parts = [_overview(dataset, head)]
    parts += [lineage_section(dataset)] if settings.lineage else []
    parts += [_funnel(dataset), _reasons(dataset, head), gallery(dataset, settings.samples)]
    parts += [_histograms(dataset), _commits(dataset), _terms(head)]
    page = Page(
        title=dataset.name,
        kicker="Harmon · a dataset",
        summary=_summary(dataset, head),
        sections=parts,
        footer=f"Commit {head.number}, content {head.content_hash}. Captions and links are shown as they came.",
        script=SCRIPT.read_text(encoding="utf-8"),
    )
    return page.render()


def write_page(dataset: Dataset, settings: ShowSettings, out: Path) -> Path:
    """Write the page whole or not at all; returns its path."""
    document = build_page(dataset, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    attempt = out.with_name(f".{out.name}.{os.getpid()}.part")
    attempt.write_text(document, encoding="utf-8", errors="replace")
    attempt.replace(out)
    return out


def _summary(dataset: Dataset, head: Commit) -> str:
    sources = ", ".join(sorted(head.terms)) or "sources that are not recorded"
    return f"{count(dataset.total_rows)} samples from {sources}; last changed by {head.step}."


def _overview(dataset: Dataset, head: Commit) -> Section:
    images = sum(entry.rows for entry in dataset.entries(IMAGES))
    size = sum(entry.bytes for entry in head.files) / 1e6
    commits = dataset.commits()
    lost: Counter[str] = Counter()
    for commit in commits:
        lost.update(commit.rejected)
    groups = shown_groups(dataset)
    captions = sum(group.startswith("caption.") for group in groups)
    cards = [
        Headline(count(dataset.total_rows), "samples", f"in {count(len(dataset.shard_numbers))} shards"),
        Headline(count(images), "pictures", f"{size:,.1f} MB with all columns"),
        Headline(count(sum(lost.values())), "rows left", f"for {len(lost)} reasons, each row with its own"),
        Headline(str(captions), "caption versions", "besides those that came with the samples"),
    ]
    return Section("At a glance", [headlines(cards)])


def _funnel(dataset: Dataset) -> Section:
    """Every commit that rows came or left through."""
    passages = []
    for commit in dataset.commits():
        lost = commit.rejected or commit.failed
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(lost.items(), key=lambda one: -one[1]))
        passages.append(Passage(f"{commit.number} {commit.step}"[:20], commit.rows_in, commit.rows_out, reasons))
    lead = "Rows into and out of each commit. A step that adds columns loses no row: the others have no "
    lead += "value there. Forgetting counts the shards that it wrote anew."
    return Section("Funnel", [funnel(f"Rows through the commits of {dataset.name}", passages)], lead)


def _reasons(dataset: Dataset, head: Commit) -> Section:
    rows: list[list[object]] = []
    for commit in dataset.commits():
        lost = [(reason, n, "left") for reason, n in commit.rejected.items()]
        lost += [(reason, n, "stays, without a value") for reason, n in commit.failed.items()]
        rows += [
            [commit.number, commit.step, code(reason), n, fate] for reason, n, fate in sorted(lost, key=lambda x: -x[1])
        ]
    if not rows:
        return Section("Reasons", [note("No row was ever rejected, and none failed.", state="good")])
    content = [table(["commit", "step", "reason", "rows", "what became of them"], rows)]
    if examples := _examples(dataset, head):
        content.append(element("h3", "Examples of rows that left"))
        content.append(table(["reason", "row", "link", "what was seen"], examples))
    return Section("Reasons", content, "Why rows left, or have no value.")


def _examples(dataset: Dataset, head: Commit) -> list[list[object]]:
    """The first few rows of each reason, in the order of the shards."""
    found: dict[str, list[list[object]]] = {}
    wanted = {reason for commit in dataset.commits() for reason in commit.rejected}
    for entry in head.files:
        if not entry.group.startswith(REJECTS) or all(len(found.get(one, ())) >= REASON_EXAMPLES for one in wanted):
            continue
        for row in dataset.table(entry.group, entry.shard).to_pylist():
            some = found.setdefault(row["reason"], [])
            if len(some) < REASON_EXAMPLES:
                named = f"{row['source']}, {row['row_id']}" if row["row_id"] else f"{row['source']}, {row['key'][:12]}…"
                some.append(
                    [code(row["reason"]), named[:80], code((row["url"] or "")[:200]), (row["detail"] or "")[:200]]
                )
    return [row for reason in sorted(found) for row in found[reason]]


def _histograms(dataset: Dataset) -> Section:
    charts: list[Markup] = []
    measured = [(group, name) for group in shown_groups(dataset) for name in numeric_columns(dataset, group)]
    for group, name in [(SOURCE, "width"), (SOURCE, "height"), *measured]:
        values, rows = numbers(dataset, group, name, MEASURED)
        if len(set(values)) > 1:
            title = name if group in (SOURCE, name) else f"{group}: {name}"
            charts.append(histogram(title, values, f"{name}, of {count(len(values))} values in {count(rows)} rows"))
        elif values:
            charts.append(
                paragraph(f"{group} {name}: {values[0]:g} in all {count(len(values))} values of {count(rows)} rows.")
            )
    return Section("Distributions", charts or [note("The dataset has no measured numbers.")])


def _commits(dataset: Dataset) -> Section:
    rows = [_commit_row(commit) for commit in dataset.commits()]
    head = ["commit", "step", "rows in", "rows out", "read", "finished", "seconds", "by", "content"]
    details = [
        fold(f"Configuration of commit {commit.number}, {commit.step}", facts(_configuration(commit)))
        for commit in dataset.commits()
    ]
    return Section("Commits", [table(head, rows), *details], "What made this dataset, oldest first.")


def _commit_row(commit: Commit) -> Sequence[object]:
    context = commit.context
    read = ", ".join(f"{entry.dataset}@{entry.commit}" for entry in commit.inputs) or "nothing"
    who = f"{context.get('user', '?')}@{context.get('host', '?')}"
    finished = str(context.get("finished_at", "?"))[:19].replace("T", " ")
    seconds = str(context.get("seconds", "?"))
    return [
        commit.number, commit.step, commit.rows_in, commit.rows_out, read, finished, seconds, who,
        code(commit.content_hash[:12]),
    ]  # fmt: skip


def _configuration(commit: Commit) -> list[tuple[str, object]]:
    """Name and value of each setting; tombstones are told by their number alone."""
    if commit.step == FORGET:
        told = ((name, value) for name, value in commit.configuration.items() if isinstance(value, list))
        return [(name, f"{len(value):,}, named in the manifest") for name, value in told]
    return [(name, code(_short(value))) for name, value in commit.configuration.items()] or [("none", "")]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 400 else f"{text[:400]} … ({len(text):,} characters)"


def _terms(head: Commit) -> Section:
    rows = [
        [source, str(terms.get("licence", "not recorded")), str(terms.get("terms", "not recorded"))]
        for source, terms in sorted(head.terms.items())
    ]
    content = table(["source", "licence", "terms"], rows) if rows else note("No terms are recorded.", state="bad")
    return Section("Licences and terms", [content])
