"""AI2D, test split: choices about science diagrams, in a variant with the labels' boxes masked and one without.

The two variants are different pictures of the same questions; the score is computed alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers.choices import infer_vlmevalkit
from harmon.evaluation.scorers.counts import AI2D_TEST, require
from harmon.evaluation.scorers.exact_match import exact_match

Reading = Literal["lmms-eval", "vlmevalkit"]
Variant = Literal["mask", "no-mask"]
_LETTER = re.compile(r"\s*([A-Z])\.")


@dataclass(frozen=True)
class Answer:
    """One question: options by letter, the right letter (the file gives its index) and the answer as it came."""

    options: Mapping[str, str]
    gold: str
    given: str


@dataclass(frozen=True)
class Ai2dScores:
    """Share of right answers, from 0 to 1, of `n`."""

    reading: Reading
    variant: Variant
    n: int
    accuracy: float

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def is_right(answer: Answer, reading: Reading) -> bool:
    """Whether `answer` is right: the letter that it begins with before a full stop, else the whole answer, equals
    the right one without case and punctuation (lmms-eval `tasks/ai2d/utils.py::MultiChoiceRegexFilter` and
    exact_match), or VLMEvalKit reads the right letter."""
    if reading == "vlmevalkit":
        return infer_vlmevalkit(answer.given, answer.options) == answer.gold
    letter = _LETTER.match(answer.given)
    return exact_match(letter[1] if letter else answer.given, answer.gold)


def score(
    answers: Sequence[Answer], variant: Variant, reading: Reading = "lmms-eval", *, partial: bool = False
) -> Ai2dScores:
    """AI2D over its 3088 test questions.

    Raises:
        HarmonError: another number of questions, and `partial` does not say so.
    """
    require(f"AI2D test, {variant}", len(answers), AI2D_TEST, partial)
    right = sum(is_right(answer, reading) for answer in answers)
    return Ai2dScores(reading, variant, len(answers), right / len(answers))
