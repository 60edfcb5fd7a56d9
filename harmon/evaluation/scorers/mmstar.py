"""MMStar: 1500 choices in six categories of three finer ones, every one in need of its picture.

Its "average" is the mean of the 18 means of finer categories in lmms-eval and the plain mean in VLMEvalKit; they differ
wherever finer categories differ in size.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harmon.evaluation.scorers.choices import infer_vlmevalkit
from harmon.evaluation.scorers.counts import MMSTAR, require
from pipelines.errors import HarmonError

Reading = Literal["lmms-eval", "vlmevalkit"]
_PREFIXES = ("(", "option ", "the answer is ")


@dataclass(frozen=True)
class Answer:
    """One question: category, l2_category, the right letter, and the model's answer as it came.

    `options` by letter, which MMStar keeps within the question, are needed only to read answers as VLMEvalKit does.
    """

    category: str
    finer: str
    gold: str
    given: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MMStarScores:
    """Shares of right answers, from 0 to 1: mean over finer categories, mean over questions, and by category the
    mean over its finer ones."""

    reading: Reading
    n: int
    mean_of_finer: float
    plain: float
    by_category: dict[str, float]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def names_letter(given: str, gold: str) -> bool:
    """Whether the answer begins with the gold letter, bare or after "(", "option " or "the answer is ", in any case.

    lmms-eval `tasks/mmstar/utils.py::exact_match`.
    """
    lower = given.lower().strip().replace("\n", " ")
    letter = gold.lower().strip().replace("\n", " ")
    if lower[:1] == letter:
        return True
    return any(lower.startswith(prefix) and lower[len(prefix) : len(prefix) + 1] == letter for prefix in _PREFIXES)


def mean_of_means(scores: Sequence[tuple[str, float]]) -> float:
    """Mean over groups of the mean within each, of (group, score) pairs.

    lmms-eval `tasks/mmstar/utils.py::mmstar_aggregate_results`.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for group, value in scores:
        groups[group].append(value)
    if not groups:
        raise HarmonError("MMStar: there is no answer to score; give at least one.")
    return sum(sum(some) / len(some) for some in groups.values()) / len(groups)


def is_right(answer: Answer, reading: Reading) -> bool:
    """Whether `answer` is right by `reading`."""
    if reading == "lmms-eval":
        return names_letter(answer.given, answer.gold)
    return infer_vlmevalkit(answer.given, answer.options) == answer.gold


def score(answers: Sequence[Answer], reading: Reading = "lmms-eval", *, partial: bool = False) -> MMStarScores:
    """MMStar over its 1500 questions.

    Raises:
        HarmonError: another number of questions, and `partial` does not say so.
    """
    require("MMStar", len(answers), MMSTAR, partial)
    right = [float(is_right(answer, reading)) for answer in answers]
    of_category: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for answer, value in zip(answers, right):
        of_category[answer.category].append((answer.finer, value))
    return MMStarScores(
        reading=reading,
        n=len(answers),
        mean_of_finer=mean_of_means([(answer.finer, value) for answer, value in zip(answers, right)]),
        plain=sum(right) / len(right),
        by_category={category: mean_of_means(some) for category, some in sorted(of_category.items())},
    )
