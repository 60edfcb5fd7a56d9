"""What examiners saw of drawn pictures, scored as the official code does, and measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.examiner import Comparing, Examiner
from harmon.evaluation.marks import Mark, Marked
from harmon.evaluation.measures import Measure, mean_of_strata, share, weighted_strata
from harmon.evaluation.scorers import dpg, fid, geneval_scores, wise
from harmon.evaluation.scorers.counts import MJHQ_CATEGORY
from harmon.evaluation.scorers.wise import CATEGORIES, Version
from pipelines.errors import HarmonError

Columns = Sequence[Mapping[str, Any]]
Pictures = Sequence[Drawn]
FID = "mjhq-30k", "mscoco-30k"

COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "geneval": [("correct", pa.bool_()), ("why", pa.string())],
    "wise-legacy": [
        ("consistency", pa.float64()),
        ("realism", pa.float64()),
        ("aesthetic_quality", pa.float64()),
        ("raw", pa.string()),
        ("answered_as", pa.string()),
    ],
    "wise-verified": [("score", pa.float64()), ("raw", pa.string()), ("answered_as", pa.string())],
    "dpg-bench": [("answers", pa.list_(pa.field("element", pa.string())))],
    **{name: [("features", pa.list_(pa.field("element", pa.float32())))] for name in FID},
}
"""What an examiner of each benchmark writes, besides key, status and reason."""


def judged(benchmark: str, pictures: Pictures, seen: pa.Table, examiner: Examiner, partial: bool) -> Marked:
    """The score of `pictures` by what was `seen` of each, COLUMNS with status and reason.

    Raises:
        HarmonError: not every picture of the benchmark was judged.
    """
    if benchmark in FID:
        return _fid(pictures, seen, examiner, partial)
    return _JUDGED[benchmark](pictures, seen.to_pylist(), partial)


def _geneval(pictures: Pictures, seen: Columns, partial: bool) -> Marked:
    ok = _whole(pictures, seen)
    told = [
        geneval_scores.Judged(picture.prompt.facts["task"], picture.prompt.id, columns["correct"])
        for picture, columns in ok
    ]
    scores = geneval_scores.score(told, partial=partial)
    prompts: dict[str, list[bool]] = {}
    tasks: dict[str, str] = {}
    for one in told:
        prompts.setdefault(one.prompt, []).append(one.correct)
        tasks[one.prompt] = one.tag
    units, strata = list(prompts), list(tasks.values())
    sums = [(float(sum(some)), float(len(some))) for some in prompts.values()]
    measures = [mean_of_strata("overall", units, sums, strata)]
    for task in scores.tasks:
        part = [place for place, stratum in enumerate(strata) if stratum == task]
        measures.append(
            mean_of_strata(task, [units[p] for p in part], [sums[p] for p in part], [task] * len(part)),
        )
    marks = [
        Mark(None if columns["correct"] is None else columns["why"] or "as asked", float(bool(columns["correct"])))
        for columns in seen
    ]
    return Marked(tuple(marks), scores.report(), tuple(measures))


def _wise_of(version: Version) -> Callable[[Pictures, Columns, bool], Marked]:
    def score(pictures: Pictures, seen: Columns, partial: bool) -> Marked:
        ok = _whole(pictures, seen)
        marks = [
            Mark(columns["raw"], _wise_value(columns, version) if columns["status"] == "ok" else 0.0)
            for columns in seen
        ]
        values = {int(picture.prompt.id): _wise_value(columns, version) for picture, columns in ok}
        if version == "legacy":
            names = ("consistency", "realism", "aesthetic_quality")
            judgements = {int(p.prompt.id): wise.Judgement(*(columns[name] for name in names)) for p, columns in ok}
            scores = wise.score_legacy(judgements, partial=partial)
        else:
            scores = wise.score_verified(values, partial=partial)
        categories = CATEGORIES[version]
        of = {
            number: next(name for name, one in categories.items() if one.first <= number <= one.last)
            for number in values
        }
        units = [str(number) for number in values]
        weights = {name: one.weight for name, one in categories.items()}
        sums = [(value, 1.0) for value in values.values()]
        measures = (
            [weighted_strata("overall", units, sums, list(of.values()), weights)] if scores.overall is not None else []
        )
        for name in scores.categories:
            some = [number for number in values if of[number] == name]
            measures.append(share(name.lower(), [str(n) for n in some], [values[n] for n in some], percent=False))
        return Marked(tuple(marks), scores.report(), tuple(measures))

    return score


def _wise_value(columns: Mapping[str, Any], version: Version) -> float:
    if version == "verified":
        return float(columns["score"])
    return wise.Judgement(columns["consistency"], columns["realism"], columns["aesthetic_quality"]).wiscore


def _dpg(pictures: Pictures, seen: Columns, partial: bool) -> Marked:
    of: dict[str, list[tuple[Drawn, Mapping[str, Any]]]] = {}
    for picture, columns in _whole(pictures, seen):
        of.setdefault(picture.prompt.id, []).append((picture, columns))
    answers = []
    for item, some in of.items():
        questions = some[0][0].prompt.record["questions"]
        dependency = {one["id"]: one["dependency"] for one in questions}
        categories = {one["id"]: one["tuple"].split("(")[0].strip() for one in questions}
        answers.append(dpg.Answers(item, dependency, [columns["answers"] for _, columns in some], categories))
    scores = dpg.score(answers, partial=partial)
    found = {one.item: dpg.score_prompt(one.dependency, one.pictures) for one in answers}
    each = {item: iter(one.pictures) for item, one in found.items()}
    marks = [
        Mark(", ".join(columns["answers"]), next(each[picture.prompt.id]))
        if columns["status"] == "ok"
        else Mark(None, 0.0)
        for picture, columns in zip(pictures, seen, strict=True)
    ]
    overall = share("overall", list(found), [one.score for one in found.values()])
    return Marked(tuple(marks), scores.report(), (overall,))


def _fid(pictures: Pictures, seen: pa.Table, examiner: Examiner, partial: bool) -> Marked:
    if not isinstance(examiner, Comparing):
        raise HarmonError(f"{examiner.name} has no features of real pictures to compare with; name their folder.")
    _whole(pictures, seen.select(["status", "reason"]).to_pylist())
    features = seen.column("features").combine_chunks()
    values = features.flatten().to_numpy(zero_copy_only=False).reshape(len(pictures), -1)
    reference = examiner.reference()
    scores = {"FID": fid.score(values, reference.moments, partial=partial)}
    of: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        of.setdefault(picture.prompt.facts[reference.fact] if reference.fact else "", []).append(place)
    for value, real in reference.by.items():
        some = of.get(value, [])
        if partial and len(some) < 2:
            continue  # one picture has no covariance
        scores[f"FID, {value}"] = fid.score(values[some], real, MJHQ_CATEGORY, partial=partial)
    # the distance is no function of sums over units, and drawing pictures again biases it upwards: no interval
    measures = [
        Measure(name, "", ("all",), ("",), np.array([[one.fid]]), lambda total: total[..., 0], higher_is_better=False)
        for name, one in scores.items()
    ]
    report = scores["FID"].report() | {"reference": reference.identity}
    report["by"] = {name.removeprefix("FID, "): one.report() for name, one in scores.items() if name != "FID"}
    return Marked((), report, tuple(measures))


def _whole(pictures: Pictures, seen: Columns) -> list[tuple[Drawn, Mapping[str, Any]]]:
    """The pictures that were judged.

    Raises:
        HarmonError: one was not: no number of a benchmark leaves pictures out.
    """
    pairs = list(zip(pictures, seen, strict=True))
    failed = [(picture, columns["reason"]) for picture, columns in pairs if columns["status"] != "ok"]
    if failed:
        picture, reason = failed[0]
        raise HarmonError(
            f"{len(failed):,} of {len(pairs):,} pictures of {picture.prompt.benchmark} could not be judged (the first, "
            f"{picture.key}: {reason}), and no number leaves any out; mend that and examine them again."
        )
    return pairs


_JUDGED: dict[str, Callable[[Pictures, Columns, bool], Marked]] = {
    "geneval": _geneval,
    "wise-legacy": _wise_of("legacy"),
    "wise-verified": _wise_of("verified"),
    "dpg-bench": _dpg,
}
