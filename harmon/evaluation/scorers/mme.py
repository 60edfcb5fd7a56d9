"""MME: two questions a picture, one to be answered yes and one no, in ten tasks of perception and four of cognition.

A task's score is 100 times the share of right answers plus 100 times the share of pictures with both right; MME-P
sums the ten (at most 2000), MME-C the four (at most 800).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers.counts import MME_COGNITION, MME_PERCEPTION, require_each
from harmon.evaluation.scorers.yes_no import read_vlmevalkit
from pipelines.errors import HarmonError

Label = Literal["yes", "no"]
Word = Literal["yes", "no", "other"]
Reading = Literal["official", "lmms-eval", "vlmevalkit"]


@dataclass(frozen=True)
class Answer:
    """One question of `task` about `image`, its right answer, and the model's answer as it came.

    Names of pictures repeat between tasks, so a picture is (task, image).
    """

    task: str
    image: str
    label: Label
    given: str


@dataclass(frozen=True)
class TaskScore:
    """`n` answers about n / 2 pictures: shares of right answers and of pictures with both right, from 0 to 1."""

    n: int
    accuracy: float
    accuracy_plus: float
    unparsed: int

    @property
    def score(self) -> float:
        """Points of this task, from 0 to 200."""
        return 100 * self.accuracy + 100 * self.accuracy_plus


@dataclass(frozen=True)
class MmeScores:
    """Every task that was asked, and the sums; a sum is None where one of its tasks was not asked."""

    reading: Reading
    tasks: dict[str, TaskScore]
    perception: float | None
    cognition: float | None

    def report(self) -> dict[str, Any]:
        """As JSON, each task with its points."""
        tasks = {name: {**asdict(one), "score": one.score} for name, one in self.tasks.items()}
        return {**asdict(self), "tasks": tasks}


def read_official(text: str) -> Word:
    """Yes, else no, where the first four characters hold it, in any case: "eyes" is yes; "not sure", "None" and
    "know" are no. Nothing is stripped, so "  yes" is neither.

    MME eval_tool `calculation.py::parse_pred_ans`, whose caller lowers the case.
    """
    return _in_first_four(text.lower())


def read_lmms_eval(text: str) -> Word:
    """As the official code, after blanks at the ends and all full stops are removed; "y" and "n" count too.

    lmms-eval `tasks/mme/utils.py::parse_pred_ans`.
    """
    cleaned = text.lower().strip().replace(".", "")
    if len(cleaned) == 1:
        return "yes" if cleaned == "y" else "no" if cleaned == "n" else "other"
    return _in_first_four(cleaned)


def read(text: str, reading: Reading) -> Word:
    """`text` as yes, no or other by `reading`; other is wrong."""
    if reading == "official":
        return read_official(text)
    if reading == "lmms-eval":
        return read_lmms_eval(text)
    word = read_vlmevalkit(text)
    return "other" if word == "Unknown" else "yes" if word == "Yes" else "no"


def score(answers: Sequence[Answer], reading: Reading = "official", *, partial: bool = False) -> MmeScores:
    """MME over its 2374 questions; a part must hold whole pictures.

    MME eval_tool `calculation.py::process_result`, lmms-eval `mme_aggregate_results`, VLMEvalKit `MME_rating`: all
    three agree but for the reading.

    Raises:
        HarmonError: a task has another number of questions and `partial` does not say so, or a picture has not
            exactly one question for yes and one for no.
    """
    of_task: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        of_task[answer.task].append(answer)
    known = MME_PERCEPTION | MME_COGNITION
    require_each("MME", {task: len(some) for task, some in of_task.items()}, known, partial)
    tasks = {task: _score_task(of_task[task], reading) for task in known if task in of_task}
    return MmeScores(reading, tasks, _total(tasks, MME_PERCEPTION), _total(tasks, MME_COGNITION))


def _in_first_four(text: str) -> Word:
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _score_task(answers: Sequence[Answer], reading: Reading) -> TaskScore:
    words = [read(answer.given, reading) for answer in answers]
    pictures: dict[str, list[tuple[Label, bool]]] = defaultdict(list)
    for answer, word in zip(answers, words):
        pictures[answer.image].append((answer.label, word == answer.label))
    for image, pair in pictures.items():
        if sorted(label for label, _ in pair) != ["no", "yes"]:
            raise HarmonError(
                f"MME {answers[0].task}: picture {image} has {len(pair)} questions answered "
                f"{', '.join(label for label, _ in pair)}; it needs one for yes and one for no."
            )
    right = sum(correct for pair in pictures.values() for _, correct in pair)
    both = sum(all(correct for _, correct in pair) for pair in pictures.values())
    return TaskScore(len(answers), right / len(answers), both / len(pictures), words.count("other"))


def _total(tasks: dict[str, TaskScore], wanted: dict[str, int]) -> float | None:
    if set(wanted) - set(tasks):
        return None
    return sum(tasks[task].score for task in wanted)
