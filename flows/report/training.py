"""The page's training: losses, learning rates and what the model makes of its prompts, stage by stage."""

from typing import Any

from flows.report.inputs import ReportInput
from pipelines.charts import PANEL, Series, line_chart, panels
from pipelines.page import Markup, Section, code, element, note, table

TASKS = {"text2image": "text to image", "image2text": "image to text", "text": "text"}


def training(source: ReportInput) -> Section:
    """One part for each stage that has metrics."""
    stages = [(name, lines) for name, lines in source.stages() if lines]
    if not stages:
        return Section("Training", [note("No stage has been trained.", state="bad")])
    content: list[Markup] = [
        table(
            ["stage", "train steps", "samples: text, image to text, text to image", "samples a second"],
            [_row(*stage) for stage in stages],
        )
    ]
    for name, lines in stages:
        stage, _, key = name.rpartition("-")
        content += [element("h3", stage or key, code(key) if stage else ""), _stage_charts(lines)]
    lead = (
        "Losses are means over masked positions (text to image: noise prediction with its variance term) or "
        "labelled tokens (the others). Faint: as logged; strong: running mean."
    )
    return Section("Training", content, lead)


def _row(name: str, lines: list[dict[str, Any]]) -> list[object]:
    last = lines[-1]
    samples = last.get("samples", {})
    shown = ", ".join(f"{samples.get(task, 0):,}" for task in ("text", "image2text", "text2image"))
    speeds = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return [name, last["step"], shown, f"{sum(speeds) / len(speeds):,.0f}" if speeds else "—"]


def _stage_charts(lines: list[dict[str, Any]]) -> Markup:
    smooth = max(1, len(lines) // 25)
    charts = []
    for tasks in (("text2image",), ("image2text", "text")):
        series = [Series(TASKS[task], _points(lines, "loss", task), smooth) for task in tasks]
        series = [line for line in series if line.points]
        if series:
            title = "Loss: " + " and ".join(line.name for line in series)
            charts.append(line_chart(title, series, "train step", "loss", width=PANEL))
    parts = sorted({part for line in lines for part in line.get("rate", {})})
    rates = [Series(part, _points(lines, "rate", part)) for part in parts]
    if rates:
        charts.append(line_chart("Learning rate", rates, "train step", "learning rate", width=PANEL))
    shares = ((line["step"], line.get("text_sensitivity")) for line in lines)
    heard = [(step, 100 * share) for step, share in shares if share is not None]
    if heard:
        said = "% of the decoder’s output that changes with the prompt"
        charts.append(
            line_chart(
                "Does the picture listen to the prompt?",
                [Series("text sensitivity", heard)],
                "train step",
                said,
                width=PANEL,
            )
        )
    return panels(charts)


def _points(lines: list[dict[str, Any]], group: str, name: str) -> list[tuple[float, float]]:
    """Steps and numbers; null, for one that was not finite, is left out."""
    found = ((line["step"], line.get(group, {}).get(name)) for line in lines)
    return [(step, value) for step, value in found if value is not None]
