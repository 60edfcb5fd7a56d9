"""Every benchmark's answers marked one by one add up to what the official scorers say of them all."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from harmon.evaluation.asked import Row
from harmon.evaluation.drawings import DrawnPicture
from harmon.evaluation.examiner import Reference
from harmon.evaluation.marks import MARKINGS, Marked
from harmon.evaluation.paper import PAPER
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.counts import GENEVAL_PROMPTS, MME_COGNITION, MME_PERCEPTION, OCRBENCH
from harmon.evaluation.scorers.fid import Moments, moments
from harmon.evaluation.verdicts import COLUMNS, judged
from pipelines.errors import HarmonError

LETTERS = dict(zip("ABCD", ("a bear", "a rabbit", "a cat", "a dog"), strict=True))


def row(number: int, gold: str, answer: str, **changes: Any) -> Row:
    return replace(Row(f"{number:032x}", str(number), "", "?", (gold,), {}, {}, 1, "", answer), **changes)


def pope(draw: random.Random) -> list[Row]:
    splits = ("random", "popular", "adversarial")
    return [
        row(
            n,
            draw.choice(("yes", "no")),
            draw.choice(("Yes", "No.", "no", "", "a dog")),
            facts={"split": splits[n % 3]},
        )
        for n in range(90)
    ]


def mme(draw: random.Random) -> list[Row]:
    rows = []
    for task in MME_PERCEPTION | MME_COGNITION:
        for picture in range(4):
            for gold in ("yes", "no"):
                facts = {"category": task, "picture": str(picture)}
                answer = draw.choice(("Yes", "No", "not sure"))
                rows.append(row(len(rows), gold, answer, facts=facts, group=f"{task}/{picture}"))
    return rows


def mmbench(draw: random.Random) -> list[Row]:
    def turned(base: int, turn: int) -> Row:
        facts = {"category": "identity", "rotation": str(turn), "base": str(base)}
        answer = draw.choice((*"AAB", "It is a rabbit.", ""))
        return row(turn * 1_000_000 + base, "A", answer, facts=facts, group=str(base), options=LETTERS)

    return [turned(base, turn) for base in range(20) for turn in range(4)]


def seed(draw: random.Random) -> list[Row]:
    return [
        row(
            n,
            draw.choice("ABCD"),
            draw.choice(("A", "(B)", "cat", "")),
            facts={"type_id": str(1 + n % 9)},
            options=LETTERS,
        )
        for n in range(60)
    ]


def gqa(draw: random.Random) -> list[Row]:
    kinds = ("query", "verify", "choose")
    return [
        row(
            n,
            draw.choice(("yes", "tshirt")),
            draw.choice(("Yes.", "yes", "t-shirt")),
            facts={"structural": kinds[n % 3]},
        )
        for n in range(60)
    ]


def mmmu(draw: random.Random) -> list[Row]:
    rows = []
    for n in range(60):
        kind = "open" if n % 10 == 0 else "multiple-choice"
        facts = {"question_type": kind, "subject": "Art"}
        gold = "36" if kind == "open" else draw.choice("ABCD")
        options = {} if kind == "open" else LETTERS
        answer = draw.choice(("(A)", "B", "it is 36", "nothing", "C. blue"))
        rows.append(row(n, gold, answer, item=f"validation_Art_{n}", facts=facts, options=options))
    return rows


def mmmu_pro(draw: random.Random) -> list[Row]:
    return [replace(one, facts={}, options=LETTERS, gold=("B",)) for one in mmmu(draw)]


def mmstar(draw: random.Random) -> list[Row]:
    return [
        row(
            n,
            draw.choice("ABCD"),
            draw.choice(("A", "B: new", "the answer is C")),
            facts={"category": "x", "l2_category": str(n % 7)},
        )
        for n in range(60)
    ]


def ai2d(draw: random.Random) -> list[Row]:
    return [row(n, draw.choice("ABCD"), draw.choice(("A", "B. a rabbit", "a cat")), options=LETTERS) for n in range(60)]


def ocrbench(draw: random.Random) -> list[Row]:
    kinds = list(OCRBENCH)
    return [
        row(
            n,
            draw.choice(("stop", "halt")),
            draw.choice(("nonstop", "go")),
            facts={"dataset": "x", "type": kinds[n % 10]},
        )
        for n in range(60)
    ]


ROWS: dict[str, Callable[[random.Random], list[Row]]] = {
    "pope": pope,
    "mme": mme,
    "mmbench-dev-en": mmbench,
    "mmbench-dev-en-v11": mmbench,
    "seed-bench-image": seed,
    "gqa": gqa,
    "mmmu-val": mmmu,
    "mmmu-pro-vision": mmmu_pro,
    "mmstar": mmstar,
    "ai2d": ai2d,
    "ocrbench": ocrbench,
}


def official(name: str, report: Mapping[str, Any]) -> dict[str, float | None]:
    """The scorer's own numbers by the names of ours, in our units."""
    if name == "pope":
        found = {f"{split}, {ours}": 100 * one[theirs] if one[theirs] is not None else None
                 for split, one in {**report["splits"], "all answers": report["overall"]}.items()
                 for ours, theirs in (("accuracy", "accuracy"), ("F1", "f1"))}  # fmt: skip
        return found | {"mean of splits, F1": 100 * report["mean_f1"]}
    if name == "mme":
        return {"perception": report["perception"], "cognition": report["cognition"]}
    if name.startswith("mmbench"):
        return {"circular": 100 * report["circular"], "vanilla": 100 * report["vanilla"]}
    if name.startswith("mmmu"):
        return {
            "accuracy": 100 * report["accuracy"],
            "accuracy without guesses": 100 * report["accuracy_without_guesses"],
        }
    if name == "mmstar":
        return {"mean of 18 categories": 100 * report["mean_of_finer"], "plain mean": 100 * report["plain"]}
    return {"points": report["points"]} if name == "ocrbench" else {"accuracy": 100 * report["accuracy"]}


@pytest.mark.parametrize("name", ROWS)
def test_measures_are_the_official_scorers_numbers(name: str) -> None:
    rows = ROWS[name](random.Random(5))
    for reading in MARKINGS[name].readings:
        marked = MARKINGS[name].mark(rows, reading, True)
        ours = {measure.name: measure.value for measure in marked.measures}
        assert ours == pytest.approx(official(name, marked.report)), reading
        assert len(marked.marks) == len(rows)
        assert set(ours) <= set(PAPER.get(name, ours)) or name.startswith("mmmu-pro")


@pytest.mark.parametrize("name", ROWS)
def test_a_number_over_the_wrong_number_of_items_is_not_given(name: str) -> None:
    if name == "mmbench-dev-en-v11":
        return  # whose number of rows nobody knows: its file is told by its MD5
    with pytest.raises(HarmonError, match=r"no score is given|has \d+ answers"):
        MARKINGS[name].mark(ROWS[name](random.Random(5)), MARKINGS[name].readings[0], False)


# Pictures


class Seen:
    """An examiner that has looked already."""

    name, configuration, differs = "made up", {}, ()

    def __init__(self, reference: Moments | None = None) -> None:
        if reference is not None:
            self.reference = lambda: Reference(reference, "made up")


def drawn(benchmark: str, item: str, number: int = 0, **prompt: Any) -> DrawnPicture:
    made = Prompt(benchmark, item, "a dog", 4, prompt.get("facts", {}), prompt.get("record", {}))
    return DrawnPicture("nowhere", 0, f"{item}{number}", made, number)


def verdict(benchmark: str, pictures: list[DrawnPicture], seen: list[dict[str, Any]], examiner: Any = None) -> Marked:
    ok = {"status": "ok", "reason": None}
    schema = pa.schema([*COLUMNS[benchmark], ("status", pa.string()), ("reason", pa.string())])
    table = pa.Table.from_pylist([ok | columns for columns in seen], schema)
    return judged(benchmark, pictures, table, examiner or Seen(), True)


def test_geneval_is_the_mean_over_tasks_whatever_their_size() -> None:
    pictures, seen = [], []
    for place, task in enumerate(GENEVAL_PROMPTS):
        for item in range(place + 1):
            for number in range(4):
                pictures.append(drawn("geneval", f"{place}{item:04}", number, facts={"task": task}))
                seen.append({"correct": number < place % 4, "why": "" if number < place % 4 else "expected dog>=1"})
    marked = verdict("geneval", pictures, seen)
    ours = {measure.name: measure.value for measure in marked.measures}
    assert ours["overall"] == pytest.approx(marked.report["overall"]) == pytest.approx((0 + 1 + 2 + 3 + 0 + 1) / 24)
    assert ours["counting"] == 0.5 and marked.measures[0].units[0] == "00000"
    assert [mark.parsed for mark in marked.marks[:4]] == ["expected dog>=1"] * 4
    assert set(ours) == set(PAPER["geneval"])


def test_wise_weighs_its_categories_and_drops_no_picture() -> None:
    ids = (1, 2, 401, 568, 701, 801, 901)
    pictures = [drawn("wise-legacy", str(number)) for number in ids]
    seen = [
        {"consistency": float(number % 3), "realism": 1.0, "aesthetic_quality": 2.0, "raw": "Consistency: 1"}
        for number in ids
    ]
    marked = verdict("wise-legacy", pictures, seen)
    assert marked.measures[0].name == "overall"
    assert marked.measures[0].value == pytest.approx(marked.report["overall"])
    failed = {"status": "failed", "reason": "the judge said nothing", "consistency": None}
    with pytest.raises(HarmonError, match="1 of 7 pictures of wise-legacy could not be judged"):
        verdict("wise-legacy", pictures, [*seen[:-1], seen[-1] | failed])


def test_dpg_counts_prompts_alike() -> None:
    questions = [{"id": 1, "dependency": [0], "tuple": "entity - whole (park)"},
                 {"id": 2, "dependency": [1], "tuple": "entity - part (tree)"}]  # fmt: skip
    pictures = [drawn("dpg-bench", item, n, record={"questions": questions}) for item in "ab" for n in range(4)]
    seen = [{"answers": ["yes", "no"]}] * 4 + [{"answers": ["no", "yes"]}] * 4
    marked = verdict("dpg-bench", pictures, seen)
    assert marked.measures[0].value == pytest.approx(marked.report["overall"]) == pytest.approx(25)
    assert [mark.score for mark in marked.marks] == [0.5] * 4 + [0.0] * 4


def test_fid_compares_with_the_examiners_reference_and_has_no_interval() -> None:
    draws = random.Random(1)
    features = [[draws.gauss(0, 1) for _ in range(3)] for _ in range(50)]
    pictures = [drawn("mjhq-30k", str(number)) for number in range(50)]
    seen = [{"features": one} for one in features]
    marked = verdict("mjhq-30k", pictures, seen, Seen(moments(features)))
    assert marked.measures[0].value == pytest.approx(0, abs=1e-6) and len(marked.measures[0].units) == 1
    with pytest.raises(HarmonError, match="no features of real pictures"):
        verdict("mjhq-30k", pictures, seen)
