"""What `harmon audit` prints: verdict and findings, history, or what would mend the dataset."""

import json
import sys
import time

import click

from pipelines.audit import AuditReport, audit
from pipelines.dataset import Dataset
from pipelines.history import history, history_lines
from pipelines.repair import apply_repair, plan_repair


def audit_command(dataset: str, deep: bool, decode: float, as_json: bool) -> int:
    """Print an audit; the exit code is 0 where the dataset is sound, else 1."""
    report = _audited(Dataset(dataset), deep, decode)
    click.echo(json.dumps(report.to_json()) if as_json else "\n".join(report.lines()))
    return 0 if report.sound else 1


def history_command(dataset: str, as_json: bool) -> int:
    """Print the commits."""
    opened = Dataset(dataset)
    records = history(opened)
    if as_json:
        click.echo(json.dumps({"dataset": str(opened.root), "commits": records}))
    else:
        click.echo("\n".join(history_lines(str(opened.root), records)))
    return 0


def repair_command(dataset: str, deep: bool, decode: float, apply: bool, as_json: bool) -> int:
    """Print what would mend the dataset, or do it and audit again; the exit code is that of the last audit."""
    opened = Dataset(dataset)
    report = _audited(opened, deep, decode)
    mends = plan_repair(opened, report)
    failed = {mend.path: problem for mend, problem in apply_repair(mends)} if apply else {}
    after = _audited(Dataset(dataset), deep, decode) if apply else report
    if as_json:
        done = [mend.to_json() | ({"problem": failed.get(mend.path)} if apply else {}) for mend in mends]
        click.echo(json.dumps(after.to_json() | {"repair": done, "applied": apply}))
        return 0 if after.sound else 1
    for mend in mends:
        word = mend.action if mend.do else "BY HAND"
        problem = failed.get(mend.path)
        click.echo(f"  {word} {mend.path}: {mend.detail}" + (f"; FAILED: {problem}" if problem else ""))
    if not mends:
        click.echo("nothing to repair")
    elif not apply:
        click.echo("nothing was changed; add --apply to do it")
    click.echo("\n".join(after.lines()))
    return 0 if after.sound else 1


def _audited(dataset: Dataset, deep: bool, decode: float) -> AuditReport:
    """An audit that shows its progress on a terminal."""
    if not sys.stderr.isatty():
        return audit(dataset, deep, decode)
    shown = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done == total or time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            click.echo(f"\r{done:,} of {total:,} files" + ("\n" if done == total else ""), err=True, nl=False)

    return audit(dataset, deep, decode, show)
