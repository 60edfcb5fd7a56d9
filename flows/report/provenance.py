"""The page's last part: departures from the paper, identities of the datasets, audits, times and versions."""

import importlib.metadata
import platform
from typing import Any

from flows.report.inputs import ReportInput
from pipelines.charts import bars
from pipelines.page import Markup, Section, code, count, duration, facts, fold, note, table

PACKAGES = ("torch", "transformers", "ray", "prefect", "pyarrow", "numpy", "pydantic", "pillow", "tokenizers")


def departures(source: ReportInput) -> Section:
    """Every setting that is not the paper's."""
    rows = [[code(one.key), _value(one.paper), _value(one.here)] for one in source.departures]
    drawn = source.scores.get("departures", []) if source.scores else []
    rows += [[code(one["key"]), _value(one["paper"]), _value(one["here"])] for one in drawn]
    lead = "What was set otherwise, to learn on two CPU cores. The defaults of the system are the paper’s."
    content = [table(["setting", "paper", "here"], rows)] if rows else [note("None: every setting is the paper’s.")]
    return Section("Departures from the paper", content, lead)


def identities(source: ReportInput) -> Section:
    """Content hash, commits and audit of each dataset."""
    audits: dict[str, Any] = source.document("audit.json") or {}
    content: list[Markup] = [_verdict(source, audits)]
    rows: list[list[object]] = []
    for dataset in source.opened:
        head = dataset.head
        size = sum(entry.bytes for entry in head.files) / 1e6 if head else 0.0
        rows.append(
            [
                dataset.name,
                dataset.total_rows,
                f"{size:,.1f} MB",
                _audit_word(audits.get(dataset.name)),
                code(head.content_hash if head else ""),
            ]
        )
    content.append(table(["dataset", "rows", "size", "audit", "content hash"], rows))
    commits = [
        [
            dataset.name,
            commit.number,
            commit.step,
            commit.rows_in,
            commit.rows_out,
            code(commit.step_key[:12]),
            code(commit.content_hash[:12]),
        ]
        for dataset in source.opened
        for commit in dataset.commits()
    ]
    content.append(
        fold(
            "Every commit",
            table(["dataset", "commit", "step", "rows in", "rows out", "step key", "content"], commits),
        )
    )
    if findings := _findings(audits):
        content.append(fold("Findings of the audits", table(["dataset", "kind", "path", "detail"], findings)))
    lead = "Equal content hashes mean equal datasets: a run killed and started again ends in the same ones."
    return Section("Datasets and audits", content, lead)


def times(source: ReportInput) -> Section:
    """How long each step took, the last time it ran."""
    latest = {f"{one['step']}:{one['subject']}": float(one["seconds"]) for one in source.lines("timings.jsonl")}
    if not latest:
        return Section("Times", [note("No timings were recorded.", state="bad")])
    rows = [(name, seconds, duration(seconds)) for name, seconds in latest.items()]
    total = sum(seconds for _, seconds, _ in rows)
    return Section("Times", [bars(f"Steps, {duration(total)} in all", rows)])


def versions(source: ReportInput) -> Section:
    """The software that this run used."""
    pairs: list[tuple[str, object]] = [
        ("Python", platform.python_version()),
        ("platform", platform.platform()),
    ]
    pairs += [(name, _version(name)) for name in PACKAGES]
    return Section("Software", [facts([*pairs, *source.software.items()])])


def _verdict(source: ReportInput, audits: dict[str, Any]) -> Markup:
    unaudited = [dataset.name for dataset in source.opened if dataset.name not in audits]
    unsound = [name for name, report in audits.items() if not report.get("sound")]
    if unsound:
        return note(f"Unsound: {', '.join(unsound)}.", state="bad")
    if unaudited:
        return note(f"Not audited: {', '.join(unaudited)}.", state="bad")
    rows = count(sum(report.get("rows", 0) for report in audits.values()))
    return note(f"harmon audit found all {len(audits)} datasets sound: {rows} rows accounted for.", state="good")


def _audit_word(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not audited"
    return "✓ sound" if report.get("sound") else "✗ unsound"


def _findings(audits: dict[str, Any]) -> list[list[object]]:
    return [
        [name, one.get("kind", ""), code(one.get("path", "")), one.get("detail", "")]
        for name, report in audits.items()
        for one in report.get("findings", [])
    ]


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
