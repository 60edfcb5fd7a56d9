"""The evaluation report as one self-contained page (pipelines.page)."""

from __future__ import annotations

from collections.abc import Sequence

from harmon.evaluation.comparison import Difference
from harmon.evaluation.measured import Example, Measured, Number
from harmon.evaluation.measures import COVERED, RESAMPLES, SEED
from harmon.evaluation.paper import HALF, LARGE
from harmon.evaluation.reported import Evaluation, shown_value
from harmon.evaluation.subject import Subject
from pipelines.page import (
    Headline,
    Markup,
    Page,
    Picture,
    Remark,
    Section,
    State,
    code,
    count,
    element,
    facts,
    fold,
    gallery,
    headlines,
    note,
    paragraph,
    table,
    thumbnail,
)

SIDE = 192  # of a picture on the page, at most
LONGEST = 600  # characters of a prompt or an answer that are shown
SIZES = {HALF: "Harmon-0.5B", LARGE: "Harmon-1.5B"}


def evaluation_page(evaluation: Evaluation) -> Page:
    """The page of one command."""
    subject, names = evaluation.subject, [one.chosen.benchmark for one in evaluation.measured]
    sections = [_overview(evaluation)]
    if evaluation.other:
        sections.append(_compared(evaluation, evaluation.other))
    sections += [_benchmark(one) for one in evaluation.measured]
    sections.append(_how(evaluation))
    whole = "" if not any(one.partial for one in evaluation.measured) else " A part of the items was measured."
    return Page(
        title=f"{subject.name}, measured",
        kicker="Harmon · evaluation",
        summary=f"{', '.join(names)}: our numbers beside the paper’s, and what sets them apart.{whole}",
        sections=sections,
        footer="Every number on this page was measured by the command that wrote it; report.json holds them all.",
    )


def _overview(evaluation: Evaluation) -> Section:
    cards = [_headline(one) for one in evaluation.measured]
    rows = [
        [
            one.chosen.benchmark,
            f"{number.measure.name}{' (part)' if one.partial else ''}",
            _with_bounds(number),
            *_paper_cells(number),
            _tolerance(number),
            _verdict(number),
        ]
        for one in evaluation.measured
        for number in one.numbers
    ]
    head = ["benchmark", "measure", "ours", *SIZES.values(), "tolerance", "reproduced"]
    content: list[Markup] = [headlines(cards)]
    content += [_no_number(one) for one in evaluation.measured if not one.numbers]
    content += [table(head, rows)] if rows else []
    content.append(
        paragraph(
            f"In brackets the {COVERED:.0f} % interval of {count(RESAMPLES)} resamples of the items (seed {SEED}). "
            "Where no tolerance is named by others, it is half of that interval."
        )
    )
    return Section("Numbers", content, "A number over other items than were published is not printed.")


def _headline(one: Measured) -> Headline:
    name = one.chosen.benchmark
    if not one.numbers:
        return Headline("–", name, "no number" if one.refused else "waits for an examiner", "plain")
    number = one.numbers[0]
    label = f"{name}: {number.measure.name}"
    value = shown_value(number.interval.value, number.measure.unit)
    if one.partial:
        return Headline(value, label, f"a part: {count(one.items)} items")
    if number.within is None:
        return Headline(value, label, f"{count(one.items)} items")
    state: State = "good" if number.within else "bad"
    paper = shown_value(number.paper or 0, number.measure.unit)
    return Headline(value, label, f"the paper’s is {paper}", state)


def _compared(evaluation: Evaluation, other: Subject) -> Section:
    names = {"first": evaluation.subject.name, "second": other.name}
    rows = [
        [
            one.benchmark,
            one.measure,
            shown_value(one.first, one.unit),
            shown_value(one.second, one.unit),
            _difference(one),
            count(one.units),
            names[one.better] if one.better else "not told apart",
        ]
        for one in evaluation.differences
    ]
    head = ["benchmark", "measure", names["first"], names["second"], "difference", "units", "better"]
    content = [
        table(head, rows) if rows else note("No benchmark has a number of both."),
        paragraph(
            f"Paired: each of {count(RESAMPLES)} resamples (seed {SEED}) draws the same items for both. A difference "
            f"is told where the {COVERED:.0f} % interval leaves 0 out; of many measures one in twenty may by chance."
        ),
    ]
    return Section("Against another checkpoint", content, f"{names['first']} less {names['second']}.")


def _difference(one: Difference) -> str:
    low, high = one.interval.low, one.interval.high
    value = shown_value(one.interval.value, one.unit)
    return f"{value} [{shown_value(low, one.unit)}, {shown_value(high, one.unit)}]" if one.uncertain else value


def _benchmark(one: Measured) -> Section:
    of = f" of {' or '.join(count(number) for number in one.of)}" if one.of else ""
    lead = f"{count(one.items)}{of} {'prompts' if one.chosen.draws else 'questions'}."
    content: list[Markup] = []
    if not one.numbers:
        content.append(_no_number(one))
    content.append(element("h3", "What differs"))
    content.append(element("ul", *(element("li", sentence) for sentence in one.differs)))
    if notes := list(dict.fromkeys(n.published.note for n in one.numbers if n.published and n.published.note)):
        content.append(element("ul", *(element("li", sentence) for sentence in notes)))
    if one.examiner:
        content.append(paragraph("Examined by ", element("strong", one.examiner), "."))
    if len(one.readings) > 1:
        content += [element("h3", "Every reading"), _readings(one)]
    if one.examples:
        content += [element("h3", "Examples"), gallery([_shown(example, one) for example in one.examples], wide=True)]
    kept = [("dataset", str(one.dataset.root)), ("content hash", one.content_hash)]
    if one.chosen.asked_as:
        kept += [("asked as", one.chosen.asked_as), ("read as", one.chosen.reading)]
    kept += [(f"examiner’s {name.replace('_', ' ')}", str(value)) for name, value in one.examined_as.items()]
    for report in one.readings.values():
        kept += (
            [("reference", f"{report['reference']}, {report['reference_n']} pictures")] if "reference" in report else []
        )
    content.append(fold("Where it is kept", facts(kept)))
    return Section(one.chosen.benchmark, content, lead)


def _readings(one: Measured) -> Markup:
    """The official scorers' own numbers, without what they say of categories."""
    rows = []
    for reading, report in one.readings.items():
        plain = [
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in _flat(report)
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        rows.append([reading, str(report["refused"]) if "refused" in report else "; ".join(plain)])
    return table(["read as", "the scorer’s own numbers"], rows)


def _flat(report: object) -> list[tuple[str, object]]:
    """Top-level numbers, and of POPE's splits and the like accuracy and F1."""
    found: list[tuple[str, object]] = []
    if not isinstance(report, dict):
        return found
    for name, value in report.items():
        if isinstance(value, dict) and name == "overall":
            found += [(f"overall {inner}", value[inner]) for inner in ("accuracy", "f1", "yes_ratio") if inner in value]
        elif not isinstance(value, dict):
            found.append((str(name), value))
    return found


def _no_number(one: Measured) -> Markup:
    name = one.chosen.benchmark
    if one.missing:
        return note(
            f"{name}: {one.missing.what} is missing, so there is no number yet. The pictures are kept in ",
            code(one.dataset.root),
            f". {one.missing.remedy}",
            state="bad",
        )
    return note(f"{name}: no number is printed. {one.refused}", state="bad")


def _shown(example: Example, one: Measured) -> Picture:
    remarks = []
    judged = bool(one.numbers)
    if not one.chosen.draws:
        remarks += [Remark(f"asked: {_cut(example.asked)}"), Remark(f"answered: {_cut(example.raw) or '(nothing)'}")]
        parsed = "nothing" if example.parsed is None else _cut(example.parsed) or "(nothing)"
        remarks.append(Remark(f"read as {parsed}; right is {_cut(example.gold)}", _state(example.score, judged)))
    else:
        remarks.append(Remark(_cut(example.asked)))
        if judged and example.parsed is not None:
            remarks.append(Remark(_cut(example.parsed), _state(example.score, judged)))
    data = example.picture
    if data is None:
        return Picture(b"", "image/png", example.item, tuple(remarks))
    return thumbnail(data, example.item, *remarks, side=SIDE)


def _state(score: float, judged: bool) -> State:
    if not judged:
        return "plain"
    return "good" if score >= 1 else "bad" if score <= 0 else "plain"


def _how(evaluation: Evaluation) -> Section:
    subjects = [evaluation.subject, *([evaluation.other] if evaluation.other else [])]
    content = [
        facts(
            [
                ("checkpoint", str(one.checkpoint)),
                ("weights", one.identity.weights + (", their average" if one.named.average else "")),
                ("stage and train step", f"{one.identity.stage} {one.identity.step}" if one.identity.stage else "none"),
                ("published size", SIZES.get(one.identity.size or "", "neither")),
                ("runs in", f"{one.dtype} on {one.device}"),
            ]
        )
        for one in subjects
    ]
    kept = paragraph(
        "Questions, answers, pictures and marks are kept as datasets: ",
        code("harmon show"),
        " and ",
        code("harmon audit"),
        " read them. Running the command again asks nothing that was answered.",
    )
    return Section("How it was measured", [*content, kept])


def _with_bounds(number: Number) -> str:
    unit = number.measure.unit
    value = shown_value(number.interval.value, unit)
    if not number.uncertain:
        return value
    return f"{value} [{shown_value(number.interval.low, unit)}, {shown_value(number.interval.high, unit)}]"


def _paper_cells(number: Number) -> Sequence[str]:
    values = number.published.values if number.published else {}
    return [shown_value(values[size], number.measure.unit) if size in values else "–" for size in SIZES]


def _tolerance(number: Number) -> str:
    return "–" if number.tolerance is None else f"± {shown_value(number.tolerance, number.measure.unit)}"


def _verdict(number: Number) -> str:
    return {None: "not compared", True: "yes", False: "no"}[number.within]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
