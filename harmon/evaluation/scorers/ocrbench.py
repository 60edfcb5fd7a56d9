"""OCRBench: 1000 questions about text in pictures; one point where a gold answer is within the model's answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harmon.evaluation.scorers.counts import OCRBENCH, require_each

RECOGNITION = tuple(OCRBENCH)[:6]
_FORMULAS = "HME100k"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


@dataclass(frozen=True)
class Answer:
    """One question: dataset, question_type, gold answers (any of them will do) and the model's answer as it came."""

    dataset: str
    question_type: str
    golds: tuple[str, ...]
    given: str


@dataclass(frozen=True)
class OcrBenchScores:
    """Points, of `n` at most: in all (0 to 1000), of the six kinds of recognition together (0 to 300), of each."""

    n: int
    points: int
    recognition: int
    by_type: dict[str, int]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def credit(dataset: str, given: str, golds: Sequence[str]) -> int:
    """1 if any gold is within `given`, without case, with line breaks as blanks and full-width ASCII as ASCII; for
    HME100k instead without blanks, with case and width kept. So "stop" is within "nonstop".

    lmms-eval 0.7.2 `tasks/ocrbench/utils.py::ocrbench_process_results`, with its pull request 1415 (full-width)
    and issue 1220 (the case of HME100k, which older versions lowered in the answer alone).
    """
    compared = _formula if dataset == _FORMULAS else _text
    answer = compared(given)
    return int(any(compared(gold) in answer for gold in golds))


def score(answers: Sequence[Answer], *, partial: bool = False) -> OcrBenchScores:
    """OCRBench over its 1000 questions; nothing is kept between calls, where lmms-eval once added runs up.

    Raises:
        HarmonError: a type has another number of questions, and `partial` does not say so.
    """
    require_each("OCRBench", Counter(answer.question_type for answer in answers), OCRBENCH, partial)
    points: Counter[str] = Counter()
    for answer in answers:
        points[answer.question_type] += credit(answer.dataset, answer.given, answer.golds)
    return OcrBenchScores(
        n=len(answers),
        points=points.total(),
        recognition=sum(points[kind] for kind in RECOGNITION),
        by_type={kind: points[kind] for kind in OCRBENCH if kind in points},
    )


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _text(text: str) -> str:
    return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")
