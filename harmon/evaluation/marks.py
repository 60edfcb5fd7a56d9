"""Answers to a benchmark's questions marked one by one, scored as the official code does, and measured.

Every reading that the scorers know is computed: papers rarely say which was theirs, and they differ by points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np

from harmon.evaluation.asked import Row
from harmon.evaluation.measures import Float, Measure, mean_of_strata, share
from harmon.evaluation.scorers import ai2d, gqa, mmbench, mme, mmmu, mmstar, ocrbench, pope, seed
from harmon.evaluation.scorers.choices import extract_lmms_eval, infer_vlmevalkit
from harmon.evaluation.scorers.counts import MME_COGNITION, MME_PERCEPTION, POPE_SPLIT, POPE_SPLITS, require

Word = TypeVar("Word", bound=str)


@dataclass(frozen=True)
class Mark:
    """What was read of an answer (None: nothing that the reading knows), and what it counts, from 0 to 1."""

    parsed: str | None
    score: float


@dataclass(frozen=True)
class Marked:
    """All answers by one reading."""

    marks: tuple[Mark, ...]
    report: Mapping[str, Any]
    """The official scorer's own numbers."""
    measures: tuple[Measure, ...]
    """The numbers that papers print, with what the bootstrap needs; the first is the headline."""


@dataclass(frozen=True)
class Marking:
    """How the answers to one benchmark are read; the first reading is the scorer's default."""

    readings: tuple[str, ...]
    mark: Callable[[Sequence[Row], str, bool], Marked]
    """Of all rows in order, the reading, and whether they are only a part.

    Raises HarmonError where they are not as many as were published, and no part."""


def _pope(rows: Sequence[Row], reading: str, partial: bool, splits: tuple[str, ...]) -> Marked:
    read = cast(pope.Reading, reading)
    answers = [
        pope.Answer(cast(pope.Split, row.facts["split"]), cast(pope.Label, row.gold[0]), row.answer) for row in rows
    ]
    if splits == POPE_SPLITS:
        report = pope.score(answers, read, partial=partial).report()
    else:
        require(f"POPE {splits[0]}", len(answers), POPE_SPLIT, partial)
        report = asdict(pope.score_answers([one.label for one in answers], [one.given for one in answers], read))
    parsed = [pope.read(one.given, read) for one in answers]
    marks = [Mark(said, float(said == one.label)) for said, one in zip(parsed, answers, strict=True)]
    return Marked(tuple(marks), report, tuple(_pope_measures(rows, answers, parsed, reading)))


def _pope_measures(
    rows: Sequence[Row], answers: Sequence[pope.Answer], parsed: Sequence[str | None], reading: str
) -> list[Measure]:
    there = [split for split in POPE_SPLITS if any(answer.split == split for answer in answers)]
    counted = []  # right, true positive, false positive, false negative, 1
    for answer, said in zip(answers, parsed, strict=True):
        missed = said == "no" or (said is None and reading == "vlmevalkit")
        yes = answer.label == "yes"
        counted.append((said == answer.label, yes and said == "yes", not yes and said == "yes", yes and missed, 1))
    table, names = np.array(counted, dtype=np.float64), [row.item for row in rows]
    found = []
    for split in there:
        of_split = [place for place, answer in enumerate(answers) if answer.split == split]
        units, sums = tuple(names[place] for place in of_split), table[of_split]
        for name, of in (("accuracy", _accuracy), ("F1", _f1)):
            found.append(Measure(f"{split}, {name}", "%", units, (split,) * len(units), sums, of))
    if len(there) > 1:
        strata = tuple(answer.split for answer in answers)
        for name, of in (("accuracy", _accuracy), ("F1", _f1)):
            found.append(Measure(f"all answers, {name}", "%", tuple(names), strata, table, of))
        apart = np.zeros((len(rows), 5 * len(there)))
        for place, split in enumerate(strata):
            start = 5 * there.index(split)
            apart[place, start : start + 5] = table[place]
        found.append(Measure("mean of splits, F1", "%", tuple(names), strata, apart, _mean_f1))
    return found


def _accuracy(total: Float) -> Float:
    value: Float = 100 * total[..., 0] / total[..., 4]
    return value


def _f1(total: Float) -> Float:
    value: Float = 200 * total[..., 1] / (2 * total[..., 1] + total[..., 2] + total[..., 3])
    return value


def _mean_f1(total: Float) -> Float:
    splits = total.reshape(*total.shape[:-1], -1, 5)
    value: Float = _f1(splits).mean(axis=-1)
    return value


def _mme(rows: Sequence[Row], reading: str, partial: bool) -> Marked:
    read = cast(mme.Reading, reading)
    answers = [
        mme.Answer(row.facts["category"], row.facts["picture"], cast(mme.Label, row.gold[0]), row.answer)
        for row in rows
    ]
    scores = mme.score(answers, read, partial=partial)
    words = [mme.read(one.given, read) for one in answers]
    marks = [
        Mark(None if word == "other" else word, float(word == one.label))
        for word, one in zip(words, answers, strict=True)
    ]
    pictures: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        pictures.setdefault(row.group, []).append(place)
    tasks = [answers[places[0]].task for places in pictures.values()]
    points = [
        50 * sum(marks[place].score for place in places) + 100 * all(marks[place].score for place in places)
        for places in pictures.values()
    ]
    measures = []
    for name, wanted in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        if not set(wanted) - set(tasks):
            part = [place for place, task in enumerate(tasks) if task in wanted]
            units = [list(pictures)[place] for place in part]
            sums = [(points[place], 1.0) for place in part]
            mean = mean_of_strata(name, units, sums, [tasks[place] for place in part], "points")
            measures.append(_times(mean, len(wanted)))
    if not measures:
        measures = [share("accuracy", [row.item for row in rows], [one.score for one in marks])]
    return Marked(tuple(marks), scores.report(), tuple(measures))


def _times(mean: Measure, factor: int) -> Measure:
    of = mean.of
    return Measure(mean.name, mean.unit, mean.units, mean.strata, mean.sums, lambda total: factor * of(total))


def _mmbench(rows: Sequence[Row], reading: str, partial: bool, version: mmbench.Version) -> Marked:
    method = cast(mmbench.Method, reading)
    answers = [
        mmbench.Answer(int(row.item), row.options, row.gold[0], row.answer, row.facts["category"]) for row in rows
    ]
    scores = mmbench.score(answers, method, version, partial=partial)
    letters = [mmbench.infer(one, method) for one in answers]
    marks = [Mark(letter, float(letter == one.gold)) for letter, one in zip(letters, answers, strict=True)]
    circles: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        circles.setdefault(row.group, []).append(place)
    whole = [float(all(marks[place].score for place in places)) for places in circles.values()]
    first = [
        next(marks[place].score for place in places if rows[place].facts["rotation"] == "0")
        for places in circles.values()
    ]
    measures = share("circular", list(circles), whole), share("vanilla", list(circles), first)
    return Marked(tuple(marks), scores.report(), measures)


def _seed(rows: Sequence[Row], reading: str, partial: bool) -> Marked:
    read = cast(seed.Reading, reading)
    answers = [seed.Answer(int(row.facts["type_id"]), row.gold[0], row.answer, row.options) for row in rows]
    scores = seed.score(answers, read, partial=partial)
    marks = []
    for one in answers:
        parsed = {
            "first-character": one.given.strip()[:1].upper() or None,
            "equality": one.given,
            "vlmevalkit": infer_vlmevalkit(one.given, one.options),
        }[read]
        marks.append(Mark(parsed, float(seed.is_right(one, read))))
    return _plain(rows, marks, scores.report())


def _gqa(rows: Sequence[Row], reading: str, partial: bool) -> Marked:
    read = cast(gqa.Reading, reading)
    answers = [gqa.Answer(row.gold[0], row.facts.get("structural", ""), row.answer) for row in rows]
    scores = gqa.score(answers, read, partial=partial)
    marks = [
        Mark(
            gqa.converted_by_llava(one.given) if read == "llava" else one.given,
            float(gqa.is_right(one.given, one.gold, read)),
        )
        for one in answers
    ]
    return _plain(rows, marks, scores.report())


def _mmmu(rows: Sequence[Row], reading: str, partial: bool, setting: mmmu.Setting | None) -> Marked:
    parser = cast(mmmu.Parser, reading)
    answers = [
        mmmu.Answer(
            row.item,
            "open" if row.facts.get("question_type") == "open" else "multiple-choice",
            tuple(row.options.values()),
            row.gold[0] if len(row.gold) == 1 else row.gold,
            row.answer,
        )
        for row in rows
    ]
    scores = (
        mmmu.score_pro(answers, setting, partial=partial) if setting else mmmu.score(answers, parser, partial=partial)
    )
    every = mmmu.marked(answers, parser)
    marks = tuple(Mark(one.parsed, float(one.right)) for one in every)
    names = [row.item for row in rows]
    measures = [
        share("accuracy", names, [one.score for one in marks]),
        share("accuracy without guesses", names, [float(one.right_unguessed) for one in every]),
    ]
    single = [place for place, row in enumerate(rows) if row.pictures == 1]
    if 0 < len(single) < len(rows):  # of the others the model was shown the first picture alone
        measures.append(
            share("accuracy, one picture", [names[place] for place in single], [marks[place].score for place in single])
        )
    return Marked(marks, scores.report(), tuple(measures))


def _mmstar(rows: Sequence[Row], reading: str, partial: bool) -> Marked:
    read = cast(mmstar.Reading, reading)
    answers = [
        mmstar.Answer(row.facts["category"], row.facts["l2_category"], row.gold[0], row.answer, row.options)
        for row in rows
    ]
    scores = mmstar.score(answers, read, partial=partial)
    marks = [Mark(one.given.strip()[:40] or None, float(mmstar.is_right(one, read))) for one in answers]
    names = [row.item for row in rows]
    pairs = [(100 * one.score, 1.0) for one in marks]
    finer = mean_of_strata("mean of 18 categories", names, pairs, [one.finer for one in answers], "%")
    return Marked(tuple(marks), scores.report(), (finer, share("plain mean", names, [one.score for one in marks])))


def _ai2d(rows: Sequence[Row], reading: str, partial: bool, variant: ai2d.Variant) -> Marked:
    read = cast(ai2d.Reading, reading)
    answers = [ai2d.Answer(row.options, row.gold[0], row.answer) for row in rows]
    scores = ai2d.score(answers, variant, read, partial=partial)
    marks = [
        Mark(
            infer_vlmevalkit(one.given, one.options) if read == "vlmevalkit" else extract_lmms_eval(one.given),
            float(ai2d.is_right(one, read)),
        )
        for one in answers
    ]
    return _plain(rows, marks, scores.report())


def _ocrbench(rows: Sequence[Row], reading: str, partial: bool) -> Marked:
    answers = [ocrbench.Answer(row.facts["dataset"], row.facts["type"], row.gold, row.answer) for row in rows]
    scores = ocrbench.score(answers, partial=partial)
    marks = [Mark(one.given, float(ocrbench.credit(one.dataset, one.given, one.golds))) for one in answers]
    sums = np.array([[one.score] for one in marks])
    strata = tuple(one.question_type for one in answers)
    names = tuple(row.item for row in rows)
    points = Measure("points", "points", names, strata, sums, lambda total: total[..., 0])
    return Marked(tuple(marks), scores.report(), (points,))


def _plain(rows: Sequence[Row], marks: Sequence[Mark], report: Mapping[str, Any]) -> Marked:
    measure = share("accuracy", [row.item for row in rows], [one.score for one in marks])
    return Marked(tuple(marks), report, (measure,))


def _pope_of(*splits: str) -> Marking:
    return Marking(get_args(pope.Reading), lambda rows, reading, partial: _pope(rows, reading, partial, splits))


def _mmbench_of(version: Literal["v1.0", "v1.1"]) -> Marking:
    return Marking(get_args(mmbench.Method), lambda rows, reading, partial: _mmbench(rows, reading, partial, version))


def _mmmu_pro_of(setting: mmmu.Setting) -> Marking:
    return Marking(("mmmu-pro",), lambda rows, reading, partial: _mmmu(rows, reading, partial, setting))


def _ai2d_of(variant: ai2d.Variant) -> Marking:
    return Marking(get_args(ai2d.Reading), lambda rows, reading, partial: _ai2d(rows, reading, partial, variant))


MARKINGS: dict[str, Marking] = {
    "pope": _pope_of(*POPE_SPLITS),
    **{f"pope-{split}": _pope_of(split) for split in POPE_SPLITS},
    "mme": Marking(get_args(mme.Reading), _mme),
    "mmbench-dev-en": _mmbench_of("v1.0"),
    "mmbench-dev-en-v11": _mmbench_of("v1.1"),
    "seed-bench-image": Marking(get_args(seed.Reading), _seed),
    "gqa": Marking(get_args(gqa.Reading), _gqa),
    "mmmu-val": Marking(
        tuple(one for one in get_args(mmmu.Parser) if one != "mmmu-pro"),
        lambda rows, reading, partial: _mmmu(rows, reading, partial, None),
    ),
    "mmmu-pro-standard-10": _mmmu_pro_of("standard-10"),
    "mmmu-pro-standard-4": _mmmu_pro_of("standard-4"),
    "mmmu-pro-vision": _mmmu_pro_of("vision"),
    "mmstar": Marking(("lmms-eval",), _mmstar),
    "ai2d": _ai2d_of("mask"),
    "ai2d-no-mask": _ai2d_of("no-mask"),
    "ocrbench": Marking(("official",), _ocrbench),
}
"""By benchmark, of harmon.evaluation.benchmark's names."""
