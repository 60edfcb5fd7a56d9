"""SEED-Bench, its image part: question types 1 to 9, four choices each; the score is over all questions alike."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harmon.evaluation.scorers.choices import infer_vlmevalkit
from harmon.evaluation.scorers.counts import SEED_IMAGE, require
from pipelines.errors import HarmonError

Reading = Literal["first-character", "equality", "vlmevalkit"]
IMAGE_TYPES = {
    1: "Scene Understanding",
    2: "Instance Identity",
    3: "Instance Attributes",
    4: "Instance Location",
    5: "Instances Counting",
    6: "Spatial Relation",
    7: "Instance Interaction",
    8: "Visual Reasoning",
    9: "Text Understanding",
}


@dataclass(frozen=True)
class Answer:
    """One question by its `question_type_id`, the right letter A to D, and the model's answer as it came.

    `options` by letter are needed only to read answers as VLMEvalKit does.
    """

    type_id: int
    gold: str
    given: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SeedScores:
    """Shares of right answers from 0 to 1: of all `n` questions alike, and of each type."""

    reading: Reading
    n: int
    accuracy: float
    by_type: dict[str, float]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def first_character_is_right(given: str, gold: str) -> bool:
    """Whether the first character is the right letter in any case: "cat" counts as C, "(C)" does not.

    lmms-eval `tasks/seedbench/utils.py::seed_process_result` and `seed_aggregation_result`.
    """
    return given.strip()[:1].lower().strip() == gold.lower().strip()


def equals(given: str, gold: str) -> bool:
    """Whether the answer is the letter and nothing else, as LLaVA's `convert_seed_for_submission.py` compares."""
    return given == gold


def likeliest(losses: Sequence[float]) -> str:
    """The letter of the choice with the smallest loss, the first of equal ones: how the official code answers.

    AILab-CVC/SEED-Bench `eval.py`.
    """
    return "ABCD"[min(range(len(losses)), key=losses.__getitem__)]


def is_right(answer: Answer, reading: Reading) -> bool:
    """Whether `answer` is right by `reading`."""
    if reading == "first-character":
        return first_character_is_right(answer.given, answer.gold)
    if reading == "equality":
        return equals(answer.given, answer.gold)
    return infer_vlmevalkit(answer.given, answer.options) == answer.gold


def score(answers: Sequence[Answer], reading: Reading = "first-character", *, partial: bool = False) -> SeedScores:
    """SEED-Bench image.

    Raises:
        HarmonError: a question of a video type, or another number of questions and `partial` does not say so.
    """
    if video := sorted({answer.type_id for answer in answers} - set(IMAGE_TYPES)):
        raise HarmonError(f"SEED-Bench type {video[0]} is no type of its image part (1 to 9); leave its questions out.")
    require("SEED-Bench image", len(answers), SEED_IMAGE, partial)
    of_type: dict[int, list[bool]] = defaultdict(list)
    for answer in answers:
        of_type[answer.type_id].append(is_right(answer, reading))
    right = sum(sum(some) for some in of_type.values())
    by_type = {IMAGE_TYPES[number]: sum(some) / len(some) for number, some in sorted(of_type.items())}
    return SeedScores(reading, len(answers), right / len(answers), by_type)
