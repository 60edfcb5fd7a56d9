"""GenEval's score from verdicts on its 2212 pictures, four of each of 553 prompts in six tasks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harmon.evaluation.scorers.counts import GENEVAL_IMAGES_A_PROMPT, GENEVAL_PROMPTS, require, require_each


@dataclass(frozen=True)
class Judged:
    """The verdict on one picture of task `tag`; `prompt` is what its prompt is known by, as its folder's number."""

    tag: str
    prompt: str
    correct: bool


@dataclass(frozen=True)
class TaskScore:
    """Right pictures of `n`."""

    right: int
    n: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.n


@dataclass(frozen=True)
class GenEvalScores:
    """Right pictures by task, in the order met; prompts with any right picture; and the number of prompts."""

    tasks: dict[str, TaskScore]
    prompts: int
    prompts_with_a_right_image: int

    @property
    def images(self) -> int:
        """Number of pictures."""
        return sum(task.n for task in self.tasks.values())

    @property
    def overall(self) -> float:
        """GenEval's number: the mean over tasks of right pictures, not the mean over pictures."""
        return sum(task.share for task in self.tasks.values()) / len(self.tasks)

    @property
    def over_images(self) -> float:
        """Right pictures of all, whatever their task."""
        return sum(task.right for task in self.tasks.values()) / self.images

    def summary(self) -> str:
        """What `evaluation/summary_scores.py` prints."""
        lines = [
            "Summary",
            "=======",
            f"Total images: {self.images}",
            f"Total prompts: {self.prompts}",
            f"% correct images: {self.over_images:.2%}",
            f"% correct prompts: {self.prompts_with_a_right_image / self.prompts:.2%}",
            "",
            "Task breakdown",
            "==============",
            *(f"{tag:<16} = {task.share:.2%} ({task.right} / {task.n})" for tag, task in self.tasks.items()),
            "",
            f"Overall score (avg. over tasks): {self.overall:.5f}",
        ]
        return "\n".join(lines) + "\n"

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "overall": self.overall, "over_images": self.over_images, "images": self.images}


def score(judged: Sequence[Judged], *, partial: bool = False) -> GenEvalScores:
    """GenEval over 2212 pictures, four of each of 553 prompts.

    `evaluation/summary_scores.py`.

    Raises:
        HarmonError: a task has another number of pictures, or a prompt not four, and `partial` does not say so.
    """
    tasks: dict[str, list[bool]] = defaultdict(list)
    prompts: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for one in judged:
        tasks[one.tag].append(one.correct)
        prompts[one.tag, one.prompt].append(one.correct)
    wanted = {tag: number * GENEVAL_IMAGES_A_PROMPT for tag, number in GENEVAL_PROMPTS.items()}
    require_each("GenEval, pictures", {tag: len(some) for tag, some in tasks.items()}, wanted, partial)
    if not partial:
        for (tag, prompt), some in prompts.items():
            require(f"GenEval, pictures of {tag} prompt {prompt!r}", len(some), GENEVAL_IMAGES_A_PROMPT)
    return GenEvalScores(
        tasks={tag: TaskScore(sum(some), len(some)) for tag, some in tasks.items()},
        prompts=len(prompts),
        prompts_with_a_right_image=sum(map(any, prompts.values())),
    )
