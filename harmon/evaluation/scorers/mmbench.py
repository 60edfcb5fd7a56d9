"""MMBench (dev-en): one question asked in as many rows as it has options, the options rotated by one in each.

CircularEval counts a question only if every row is right; vanilla counts the rows as published first (index below a
million). Papers report either; LLaVA-era tables and Janus report vanilla.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harmon.evaluation.scorers.choices import NO_OPTION, extract_lmms_eval, infer_lmms_eval, infer_vlmevalkit
from harmon.evaluation.scorers.counts import MMBENCH_DEV_EN_QUESTIONS, MMBENCH_DEV_EN_ROWS, require
from pipelines.errors import HarmonError

Method = Literal["vlmevalkit", "lmms-eval", "lmms-eval-static"]
Version = Literal["v1.0", "v1.1"]
ROTATION = 1_000_000


@dataclass(frozen=True)
class Answer:
    """One row: `index` = base index + rotation times a million; the options that it has, by letter; the letter of
    the right one after rotation; and the model's answer as it came."""

    index: int
    options: Mapping[str, str]
    gold: str
    given: str
    category: str = ""

    @property
    def question(self) -> int:
        """The base index, which all rotations share."""
        return self.index % ROTATION


@dataclass(frozen=True)
class MMBenchScores:
    """Shares from 0 to 1: of `questions` with every rotation right, and of first rows right.

    `unparsed` rows named no option by `method`; of these `judged` were decided by a judge, the others are wrong.
    """

    method: Method
    version: Version
    rows: int
    questions: int
    circular: float
    vanilla: float
    unparsed: int
    judged: int
    circular_by_category: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def infer(answer: Answer, method: Method) -> str | None:
    """The letter that `method` reads, None where it would ask a judge."""
    if method == "vlmevalkit":
        return infer_vlmevalkit(answer.given, answer.options)
    if method == "lmms-eval":
        return infer_lmms_eval(answer.given.strip(), answer.options)
    return extract_lmms_eval(answer.given, list(answer.options))


def circular_hit(rows: Sequence[Answer], method: Method = "vlmevalkit") -> int | None:
    """1 if every rotation is right, 0 if any names another option, else None: a judge must read the rest.

    VLMEvalKit `dataset/utils/multiple_choice.py::prefetch_circular_group`.
    """
    read = [infer(row, method) for row in rows]
    if any(letter not in (None, row.gold) for row, letter in zip(rows, read)):
        return 0
    return None if None in read else 1


def score(
    answers: Sequence[Answer],
    method: Method = "vlmevalkit",
    version: Version = "v1.0",
    judged: Mapping[int, str] | None = None,
    *,
    partial: bool = False,
) -> MMBenchScores:
    """Both scores of MMBench dev-en; `judged` maps indexes that `method` could not read to a judge's letter.

    VLMEvalKit `mcq_circular_eval` and `mcq_vanilla_eval`; without a judge its policy `exact_matching`: unread is
    wrong. Nothing is guessed, where the official fallback is an unseeded random letter.

    Raises:
        HarmonError: a question has not one row for each of its options, an index twice, or v1.0 another number of
            rows and `partial` does not say so.
    """
    questions = _whole_circles(answers)
    if version == "v1.0":
        require("MMBench dev-en v1.0, rows", len(answers), MMBENCH_DEV_EN_ROWS, partial)
        require("MMBench dev-en v1.0, questions", len(questions), MMBENCH_DEV_EN_QUESTIONS, partial)
    read = {answer.index: infer(answer, method) for answer in answers}
    unread = [index for index, letter in read.items() if letter is None]
    decided = judged or {}
    final = {index: letter or decided.get(index, NO_OPTION) for index, letter in read.items()}
    right = {answer.index: final[answer.index] == answer.gold for answer in answers}
    hits = {question: all(right[row.index] for row in rows) for question, rows in questions.items()}
    categories: dict[str, list[bool]] = defaultdict(list)
    for question, rows in questions.items():
        if category := next(row.category for row in rows if row.index == question):
            categories[category].append(hits[question])
    return MMBenchScores(
        method=method,
        version=version,
        rows=len(answers),
        questions=len(questions),
        circular=_mean(hits.values()),
        vanilla=_mean(right[question] for question in questions),
        unparsed=len(unread),
        judged=sum(index in decided for index in unread),
        circular_by_category={name: _mean(some) for name, some in sorted(categories.items())},
    )


def _whole_circles(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    questions: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        questions[answer.question].append(answer)
    if not questions:
        raise HarmonError("MMBench: there is no answer to score; give at least one question with all its rows.")
    for question, rows in questions.items():
        needed = {question + ROTATION * turn for turn in range(len(rows[0].options))}
        if len(rows) != len(needed) or {row.index for row in rows} != needed:
            raise HarmonError(
                f"MMBench question {question} has the rows {sorted(row.index for row in rows)}, but with "
                f"{len(rows[0].options)} options it needs {sorted(needed)}; answer every rotation once."
            )
    return questions


def _mean(values: Iterable[bool]) -> float:
    some = list(values)
    return sum(some) / len(some)
