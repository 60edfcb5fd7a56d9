"""The page's results: scores with their verdicts, generated pictures and answers."""

from typing import Any

from flows.report.inputs import Goals, ReportInput
from pipelines.charts import Measure, Series, line_chart, measures
from pipelines.page import (
    Headline,
    Markup,
    Picture,
    Remark,
    Section,
    State,
    element,
    fold,
    gallery,
    headlines,
    note,
    paragraph,
    percent,
    table,
    thumbnail,
)

SHOWN = {"held_out": 24, "seen": 12, "two": 12}
SETS = {
    "held_out": "One object, colour and shape never trained together",
    "seen": "One object, a trained pair",
    "two": "Two objects",
}
JUDGED = {"colours": "colour", "shapes": "shape", "whole": "number of objects", "background": "background"}


def results(source: ReportInput) -> Section:
    """The headline numbers with plain-language verdicts, and what takes the paper's parts' place."""
    content: list[Markup] = []
    if source.scores is None:
        content.append(note("There are no scores: the evaluation has not run.", state="bad"))
    else:
        content.append(headlines(_headlines(source.scores, source.goals)))
        content.append(fold("Every score with its count", _all_scores(source.scores)))
        content += _curve(source)
    if source.stand_ins:
        rows = [[part.name, part.instead_of, part.consequence] for part in source.stand_ins]
        content.append(element("h3", "Stand-ins"))
        content.append(
            paragraph("This run is small: these parts take the place of the paper’s, and its numbers are its own.")
        )
        content.append(table(["here", "instead of", "what follows"], rows))
    return Section("Results", content, _summary(source.scores, source.goals) if source.scores else "")


def pictures(source: ReportInput) -> Section:
    """Generated pictures beside their prompts, with what the detector saw."""
    lead = (
        "Below each picture its prompt, then what a rule-based detector sees in it. The border says whether "
        "the colours are right."
    )
    records = source.scores["pictures"] if source.scores else []
    content: list[Markup] = []
    for name, title in SETS.items():
        chosen = [record for record in records if record["set"] == name][: SHOWN[name]]
        shown = [picture for record in chosen if (picture := _generated(source, record))]
        if shown:
            content += [element("h3", title), gallery(shown)]
    return Section("Generated pictures", content or [note("There are no generated pictures.", state="bad")], lead)


def answers(source: ReportInput) -> Section:
    """Accuracy by kind of question beside the best constant answer, and examples."""
    scored = source.scores["answers"] if source.scores else []
    if not scored:
        return Section("Answers", [note("No questions were asked.", state="bad")])
    rows = [
        Measure(part["kind"], part["share"], part["chance"], part["n"], f"always “{part['constant']}”")
        for part in scored
    ]
    examples = [_example(source, group) for group in _by_picture(source)[:12]]
    content = [
        measures("Right answers by kind of question", rows),
        element("h3", "Examples"),
        gallery([example for example in examples if example], wide=True),
    ]
    lead = (
        "Questions about scenes that were not trained on, answered by the same model. The dashed mark is "
        "what always giving the commonest right answer would reach."
    )
    return Section("Answers", content, lead)


def _headlines(scores: dict[str, Any], goals: Goals) -> list[Headline]:
    cards: list[Headline] = []
    unseen = scores["generation"].get("held_out")
    if unseen:
        cards.append(_share("Object’s colour right, pairs never trained", unseen["colour"], goals.colour))
        cards.append(_share("Object’s shape right, pairs never trained", unseen["shape"], goals.shape))
        cards.append(_share("Pictures with exactly one object", unseen["whole"], None))
        cards.append(_share("Background as the prompt says", unseen["background"], None))
    if two := scores["generation"].get("two"):
        cards.append(_share("Two objects, both colours right", two["colour"], goals.two))
    for part in (part for part in scores["answers"] if part["kind"] in goals.answers):
        margin = part["share"] - part["chance"]
        state: State = "good" if margin >= goals.answer_margin else "bad"
        verdict = (
            f"{part['right']} of {part['n']}; {100 * margin:+.0f} points on always “{part['constant']}”. "
            f"{_reached(margin >= goals.answer_margin, f'{100 * goals.answer_margin:.0f} points')}"
        )
        cards.append(Headline(percent(part["share"]), f"Answers right: {part['kind']}", verdict, state))
    return cards


def _share(label: str, score: dict[str, Any], goal: float | None) -> Headline:
    verdict = f"{score['right']} of {score['n']}"
    if score["chance"] is not None:
        verdict += f"; chance {_chance(score['chance'])}"
    state: State = "plain"
    if goal is not None:
        state = "good" if score["share"] >= goal else "bad"
        verdict += f". {_reached(score['share'] >= goal, percent(goal))}"
    return Headline(percent(score["share"]), label, verdict.rstrip(".") + ".", state)


def _chance(share: float) -> str:
    return f"{100 * share:.3g}%"


def _reached(reached: bool, goal: str) -> str:
    return f"Goal of {goal} reached." if reached else f"Goal of {goal} missed."


def _summary(scores: dict[str, Any], goals: Goals) -> str:
    """One or two sentences for someone who reads nothing else."""
    sentences = []
    if unseen := scores["generation"].get("held_out"):
        share, chance = unseen["colour"]["share"], unseen["colour"]["chance"]
        learned = "has learned" if share >= goals.colour else "has not reliably learned"
        sentences.append(
            f"The model {learned} to draw the colour a prompt asks for: {percent(share)} of prompts, against "
            f"{_chance(chance)} by chance."
        )
    above = [part["kind"] for part in scores["answers"] if part["share"] - part["chance"] >= goals.answer_margin]
    if scores["answers"]:
        kinds = f"{', '.join(above)}" if above else "no kind of question"
        sentences.append(f"Its answers are well above the best constant answer on: {kinds}.")
    return " ".join(sentences)


def _all_scores(scores: dict[str, Any]) -> Markup:
    rows: list[list[object]] = []
    for name, part in scores["generation"].items():
        for measure in ("colour", "shape", "both", "whole", "background"):
            score = part[measure]
            chance = "—" if score["chance"] is None else percent(score["chance"], 1)
            rows.append(
                [
                    SETS.get(name, name),
                    measure,
                    score["right"],
                    score["n"],
                    percent(score["share"], 1),
                    chance,
                ]
            )
    for part in scores["answers"]:
        rows.append(
            [
                "Answers",
                part["kind"],
                part["right"],
                part["n"],
                percent(part["share"], 1),
                percent(part["chance"], 1),
            ]
        )
    return table(["what", "measure", "right", "of", "share", "chance or best constant"], rows)


def _curve(source: ReportInput) -> list[Markup]:
    lines = source.lines("curve.jsonl")
    if not lines:
        return []
    names = {"colour": "colour, one object", "shape": "shape, one object", "two": "both colours, two objects"}
    series = [
        Series(text, [(line["minutes"], 100 * line[key]) for line in lines if line.get(key) is not None])
        for key, text in names.items()
    ]
    goal = [(100 * source.goals.colour, "goal for colour")]
    return [line_chart("Right pictures over training", series, "minutes of training", "% of prompts", goal)]


def _generated(source: ReportInput, record: dict[str, Any]) -> Picture | None:
    file = source.run / "evaluation" / record["file"]
    if not file.exists():
        return None
    state: State = "good" if record["colours"] else "bad"
    wrong = [word for name, word in JUDGED.items() if record[name] is False]
    remarks = [Remark(f"sees {record['seen']}", state)]
    if wrong:
        remarks.append(Remark(f"not as asked: {', '.join(wrong)}"))
    return thumbnail(file.read_bytes(), record["prompt"], *remarks, state=state)


def _by_picture(source: ReportInput) -> list[list[dict[str, Any]]]:
    """The lines of answers.jsonl, those about one picture together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in source.lines("evaluation/answers.jsonl"):
        groups.setdefault(line["file"], []).append(line)
    return list(groups.values())


def _example(source: ReportInput, asked: list[dict[str, Any]]) -> Picture | None:
    file = source.run / "evaluation" / asked[0]["file"]
    if not file.exists():
        return None
    said = (Remark(_said(one), "good" if one["right"] else "bad") for one in asked)
    return thumbnail(file.read_bytes(), "", *said)


def _said(one: dict[str, Any]) -> str:
    given = one["given"] or "(nothing)"
    return f"{one['question']} {given}" + ("" if one["right"] else f"; right: {one['answer']}")
