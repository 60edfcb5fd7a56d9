"""One benchmark of one checkpoint, from its published files to numbers beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harmon.answering import GREEDY, AnswerConfig
from harmon.evaluation.asked import ANSWER, Row, answered_rows, ask
from harmon.evaluation.benchmark import GENERATION, UNDERSTANDING, read_prompts, read_questions
from harmon.evaluation.crew import ALONE, Crew
from harmon.evaluation.drawings import DrawnPicture, draw, drawn_pictures
from harmon.evaluation.examiner import Comparing, Missing
from harmon.evaluation.examiners import NOTHING, Means, check_means, open_examiner
from harmon.evaluation.marks import MARKINGS, Mark, Marked
from harmon.evaluation.measures import Interval, Measure, finite
from harmon.evaluation.paper import PAPER, Published
from harmon.evaluation.question import Picture, Question
from harmon.evaluation.scored import examine, keep_marks
from harmon.evaluation.subject import Subject
from harmon.evaluation.variants import Chosen
from harmon.evaluation.verdicts import judged
from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError

CHECKED = 32  # pictures of a benchmark that answers are checked against
PAPER_PX = 512  # of Harmon's stage III and of its pictures (paper, section 4.1)
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Plan:
    """How checkpoints are measured."""

    out: Path
    """Folder of the datasets."""
    limit: int | None = None
    """Items of each benchmark; None: all."""
    px: int | None = None
    answers: AnswerConfig = GREEDY
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """What differs from how the checkpoint says that it draws."""
    seed: int = 0
    crew: Crew = ALONE
    means: Means = NOTHING
    shown: int = 6
    """Examples in the report."""


@dataclass(frozen=True)
class Number:
    """One measure by one reading, beside the paper's."""

    measure: Measure
    interval: Interval
    published: Published | None
    size: str | None
    """The published model of this size, whose number is compared; None where the model is another, or it was measured
    otherwise than the paper says."""

    @property
    def paper(self) -> float | None:
        """The paper's number for this size."""
        return self.published.values.get(self.size) if self.published and self.size else None

    @property
    def tolerance(self) -> float | None:
        """How far from the paper's counts as the same; None where nothing is compared."""
        if self.published is None or self.paper is None:
            return None
        if self.published.tolerance is not None:
            return self.published.tolerance
        return (self.interval.high - self.interval.low) / 2 if self.uncertain else None

    @property
    def within(self) -> bool | None:
        """Whether it is as near to the paper's as the tolerance asks."""
        if self.tolerance is None or self.paper is None:
            return None
        return abs(self.interval.value - self.paper) <= self.tolerance

    @property
    def uncertain(self) -> bool:
        """Whether there is an interval: not of one unit alone."""
        return len(self.measure.units) > 1

    def report(self) -> dict[str, Any]:
        """As JSON; what is not a number is null."""
        bounds = [finite(self.interval.low), finite(self.interval.high)] if self.uncertain else None
        return {
            "measure": self.measure.name,
            "unit": self.measure.unit,
            "value": finite(self.interval.value),
            "interval_95": bounds,
            "units": len(self.measure.units),
            "paper": dict(self.published.values) if self.published else None,
            "paper_source": self.published.source if self.published else None,
            "paper_note": (self.published.note or None) if self.published else None,
            "tolerance": self.tolerance,
            "within": self.within,
        }


@dataclass(frozen=True)
class Example:
    """One item as it was asked or drawn."""

    item: str
    asked: str
    gold: str
    """Empty for pictures."""
    raw: str
    parsed: str | None
    score: float
    picture: bytes | None


@dataclass(frozen=True)
class Measured:
    """All that came of one benchmark."""

    chosen: Chosen
    items: int
    of: tuple[int, ...]
    """Items published; none where no count is known."""
    partial: bool
    dataset: Dataset
    numbers: tuple[Number, ...]
    """By the reading chosen, the headline first; none where there is no score."""
    readings: Mapping[str, Mapping[str, Any]]
    """Every reading to the official scorer's numbers, or to why it gives none."""
    differs: tuple[str, ...]
    """What sets it apart from the paper's or the official number."""
    examiner: str | None
    examined_as: Mapping[str, Any]
    """What decided the examiner's values: model or weights, wording, preparation; empty without one."""
    missing: Missing | None
    refused: str | None
    """Why there is no number, where not for want of an examiner."""
    examples: tuple[Example, ...]

    @property
    def content_hash(self) -> str:
        """Of the answers or pictures alone, without what was made of them since."""
        return self.dataset.commits()[0].content_hash

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "benchmark": self.chosen.benchmark,
            "asked_as": self.chosen.asked_as or None,
            "reading": self.chosen.reading or None,
            "items": self.items,
            "published_items": list(self.of),
            "partial": self.partial,
            "dataset": str(self.dataset.root),
            "content_hash": self.content_hash,
            "numbers": [one.report() for one in self.numbers],
            "readings": _jsonable(self.readings),
            "differs": list(self.differs),
            "examiner": self.examiner,
            "examined_as": _jsonable(self.examined_as),
            "missing": vars(self.missing) if self.missing else None,
            "refused": self.refused,
            "examples": [{k: v for k, v in vars(one).items() if k != "picture"} for one in self.examples],
        }


def measure(subject: Subject, chosen: Chosen, data: Path, plan: Plan, on_progress: Progress | None = None) -> Measured:
    """Ask or draw what is not done yet, score it, and set it beside the paper's.

    Raises:
        ConfigurationError: the files or the checkpoint cannot be used as asked.
        HarmonError: the files are not the published ones, or the work could not be done.
    """
    shown = on_progress or (lambda label: nullcontext(lambda done, total: None))
    return (_draw if chosen.draws else _ask)(subject, chosen, data, plan, shown)


def _ask(subject: Subject, chosen: Chosen, data: Path, plan: Plan, on_progress: Progress) -> Measured:
    questions = read_questions(chosen.benchmark, data, chosen.asked_as, plan.limit)
    px = plan.px or subject.identity.px
    with on_progress(chosen.benchmark) as told:
        dataset = ask(subject, questions, chosen.asked_as, plan.out, px, plan.answers, plan.crew, told)
    rows = answered_rows(dataset)
    _check_pictures(dataset, rows, questions)
    of, partial = UNDERSTANDING[chosen.benchmark].count.total, plan.limit is not None
    marking, readings = MARKINGS[chosen.benchmark], dict[str, Mapping[str, Any]]()
    mine: Marked | None = None
    refused: str | None = None
    for reading in marking.readings:
        try:
            marked = marking.mark(rows, reading, partial)
        except HarmonError as error:  # the scorer gives no number, and the others may
            readings[reading] = {"refused": str(error)}
            refused = str(error) if reading == chosen.reading else refused
            continue
        keep_marks(dataset, ANSWER, reading, marked.marks)
        readings[reading] = marked.report
        mine = marked if reading == chosen.reading else mine
    several = sum(row.pictures > 1 for row in rows)
    apart = [*_size_differs(px, "seen"), *_answered_otherwise(plan.answers)]
    differs = [
        f"Asked in the words of {chosen.asked_as} and read as {chosen.reading} reads; the paper says neither.",
        *apart,
        *([f"{several:,} questions have several pictures; the model was shown the first of each."] if several else []),
        *_common(subject, len(rows), of, partial),
    ]
    return Measured(
        chosen=chosen,
        items=len(rows),
        of=of,
        partial=partial,
        dataset=dataset,
        numbers=_numbers(subject, chosen, mine, partial or bool(apart)),
        readings=readings,
        differs=tuple(differs),
        examiner=None,
        examined_as={},
        missing=None,
        refused=refused,
        examples=_answers_shown(rows, mine, [question.pictures[0] for question in questions], plan.shown),
    )


def _check_pictures(dataset: Dataset, rows: Sequence[Row], questions: Sequence[Question]) -> None:
    """Raise HarmonError where some evenly spread pictures are no longer those that the model was shown: no key holds
    their bytes, and an answer about another picture is none.
    """
    for place in _spread(len(rows), CHECKED):
        if sha256_hex(questions[place].pictures[0].read()) != rows[place].picture_sha256:
            raise HarmonError(
                f"{dataset.root} has answers about other pictures: {questions[place].pictures[0].where} has changed "
                f"since {rows[place].item} was asked; put the pictures back, or write into another folder (-o)."
            )


def _draw(subject: Subject, chosen: Chosen, data: Path, plan: Plan, on_progress: Progress) -> Measured:
    check_means(chosen.benchmark, plan.means)
    prompts = read_prompts(chosen.benchmark, data, plan.limit)
    px = plan.px or subject.identity.px
    sampling = subject.sampling(plan.sampling)
    with on_progress(f"{chosen.benchmark}, pictures") as told:
        dataset = draw(subject, prompts, plan.out, px, sampling, plan.seed, plan.crew, told)
    pictures = [one for shard in dataset.shard_numbers for one in drawn_pictures(dataset, shard)]
    of, partial = GENERATION[chosen.benchmark].count.total, plan.limit is not None
    apart = [
        f"Pictures are drawn otherwise: {one.key} is {one.here}, the paper’s {one.paper}."
        for one in sampling.departures(subject.identity.config)
    ]
    apart += _size_differs(px, "drawn")
    seeds = f"One seed ({plan.seed}), one draw of each picture; the paper does not say how many it has."
    differs = [*apart, seeds, *_common(subject, len(prompts), of, partial)]
    examiner = open_examiner(chosen.benchmark, plan.means, data)
    marked: Marked | None = None
    refused: str | None = None
    missing, name = examiner if isinstance(examiner, Missing) else None, ""
    if not isinstance(examiner, Missing):
        name = examiner.name
        differs += examiner.differs
        apart += examiner.differs
        with on_progress(f"{chosen.benchmark}, examined") as told:
            group, seen = examine(dataset, chosen.benchmark, examiner, told)
        try:
            if isinstance(examiner, Comparing):
                with on_progress(f"{chosen.benchmark}, real pictures") as told:
                    examiner.reference(told)
            marked = judged(chosen.benchmark, pictures, seen, examiner, partial)
        except HarmonError as error:
            refused = str(error)
        else:
            if marked.marks:
                keep_marks(dataset, group, chosen.benchmark, marked.marks)
    return Measured(
        chosen=chosen,
        items=len(prompts),
        of=of,
        partial=partial,
        dataset=dataset,
        numbers=_numbers(subject, chosen, marked, partial or bool(apart)),
        readings={name: marked.report} if marked else {},
        differs=tuple(differs),
        examiner=name or None,
        examined_as={} if isinstance(examiner, Missing) else examiner.configuration,
        missing=missing,
        refused=refused,
        examples=_pictures_shown(pictures, marked.marks if marked else (), plan.shown),
    )


def _numbers(subject: Subject, chosen: Chosen, marked: Marked | None, otherwise: bool) -> tuple[Number, ...]:
    """`otherwise`: it is a part of the items, or was measured otherwise than the paper says."""
    known = PAPER.get(chosen.benchmark, {})
    measures = list(marked.measures) if marked else []
    measures.sort(key=lambda one: not one.name.endswith(chosen.headline))  # stable: the headline's first
    size = None if otherwise else subject.identity.size  # which is compared with nothing
    return tuple(Number(one, one.interval, known.get(one.name), size) for one in measures)


def _answered_otherwise(config: AnswerConfig) -> list[str]:
    found = []
    if config.temperature != GREEDY.temperature:
        found.append(f"Answers are drawn at temperature {config.temperature}; the paper’s are greedy.")
    if config.max_new_tokens != GREEDY.max_new_tokens:
        found.append(f"Answers end after {config.max_new_tokens} tokens; the release’s after 1,024.")
    return found


def _size_differs(px: int, how: str) -> list[str]:
    return [] if px == PAPER_PX else [f"Pictures are {how} at {px} px; the paper’s at {PAPER_PX}."]


def _common(subject: Subject, items: int, of: Sequence[int], partial: bool) -> list[str]:
    found = []
    if subject.identity.size is None:
        found.append(
            "The model is of neither published size, so the paper’s numbers stand there for orientation alone."
        )
    if subject.named.average:
        found.append("The averaged weights were measured; the paper keeps no average.")
    if subject.dtype != "float32":
        found.append(f"The model runs in {subject.dtype}.")
    if partial:
        whole = f" of {max(of):,}" if of else ""
        found.append(f"A part: the first {items:,} items{whole}. It is no number of this benchmark.")
    return found


def _answers_shown(
    rows: Sequence[Row], marked: Marked | None, pictures: Sequence[Picture], number: int
) -> tuple[Example, ...]:
    """Evenly spread over the benchmark."""
    return tuple(
        Example(
            item=rows[place].item,
            asked=rows[place].prompt,
            gold=", ".join(rows[place].gold),
            raw=rows[place].answer,
            parsed=marked.marks[place].parsed if marked else None,
            score=marked.marks[place].score if marked else 0.0,
            picture=pictures[place].read(),
        )
        for place in _spread(len(rows), number)
    )


def _pictures_shown(pictures: Sequence[DrawnPicture], marks: Sequence[Mark], number: int) -> tuple[Example, ...]:
    return tuple(
        Example(
            item=pictures[place].key,
            asked=pictures[place].prompt.text,
            gold="",
            raw="",
            parsed=marks[place].parsed if marks else None,
            score=marks[place].score if marks else 0.0,
            picture=pictures[place].read(),
        )
        for place in _spread(len(pictures), number)
    )


def _spread(total: int, number: int) -> list[int]:
    taken = min(total, number)
    return [round(place * (total - 1) / max(1, taken - 1)) for place in range(taken)]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    return finite(value) if isinstance(value, float) else value
