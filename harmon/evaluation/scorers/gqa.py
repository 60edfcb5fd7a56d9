"""GQA testdev-balanced: short open answers, right when equal to the one gold answer, by one of four equalities."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers.counts import GQA_STRUCTURAL, GQA_TESTDEV_BALANCED, require
from harmon.evaluation.scorers.exact_match import exact_match

Reading = Literal["llava", "official", "lmms-eval", "vlmevalkit"]


@dataclass(frozen=True)
class Answer:
    """One question: its gold answer, `types.structural` (choose, compare, logical, query or verify) and the model's
    answer as it came. Only balanced questions belong to the benchmark."""

    gold: str
    structural: str
    given: str


@dataclass(frozen=True)
class GqaScores:
    """Shares of right answers from 0 to 1. `open` is of the questions with structure query, `binary` of the others;
    None where there are none."""

    reading: Reading
    n: int
    accuracy: float
    binary: float | None
    open: float | None
    by_structure: dict[str, float]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def converted_by_llava(given: str) -> str:
    """The answer as LLaVA writes it for the official code: no full stops at its end, lower case, blanks kept.

    LLaVA `scripts/convert_gqa_for_eval.py`.
    """
    return given.rstrip(".").lower()


def is_right(given: str, gold: str, reading: Reading) -> bool:
    """Whether `given` equals `gold`: as it is (GQA's own `eval.py`), after LLaVA's conversion of the answer alone,
    without case and punctuation (lmms-eval), or without case and blanks at the ends (VLMEvalKit)."""
    if reading == "official":
        return given == gold
    if reading == "llava":
        return converted_by_llava(given) == gold
    if reading == "lmms-eval":
        return exact_match(given, gold)
    return given.lower().strip() == gold.lower().strip()


def score(answers: Sequence[Answer], reading: Reading = "llava", *, partial: bool = False) -> GqaScores:
    """GQA over its 12,578 questions.

    Raises:
        HarmonError: another number of questions, in all or of a structure, and `partial` does not say so.
    """
    require("GQA testdev-balanced", len(answers), GQA_TESTDEV_BALANCED, partial)
    structures = Counter(answer.structural for answer in answers)
    if not partial:
        for structure, number in GQA_STRUCTURAL.items():
            require(f"GQA testdev-balanced, structure {structure}", structures[structure], number)
    of_structure: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        of_structure[answer.structural].append(is_right(answer.given, answer.gold, reading))
    every = [right for some in of_structure.values() for right in some]
    binary = [right for structure, some in of_structure.items() if structure != "query" for right in some]
    return GqaScores(
        reading=reading,
        n=len(answers),
        accuracy=sum(every) / len(every),
        binary=_share(binary),
        open=_share(of_structure.get("query", [])),
        by_structure={structure: sum(some) / len(some) for structure, some in sorted(of_structure.items())},
    )


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
