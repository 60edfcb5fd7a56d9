"""DPG-Bench: dense prompts taken apart into yes-no questions that depend on each other, four pictures a prompt.

A question whose parent was answered no is wrong whatever its own answer. The judge is mPLUG-large VQA, officially.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harmon.evaluation.scorers.counts import DPG_IMAGES_A_PROMPT, DPG_PROMPTS, require
from pipelines.errors import HarmonError

NO_PARENT = 0


@dataclass(frozen=True)
class Answers:
    """The answers about all pictures of one prompt.

    `dependency` maps each question's number to its parents, 0 being none, in the order of the published table, on
    which the result depends; `pictures` hold one answer to each question, in that order; `categories` are what the
    column `tuple` has before its bracket ("entity - whole"), by question.
    """

    item: str
    dependency: Mapping[int, Sequence[int]]
    pictures: Sequence[Sequence[str]]
    categories: Mapping[int, str]


@dataclass(frozen=True)
class PromptScore:
    """Share of questions right, from 0 to 1: of each picture and their mean; and of the last picture the scores of
    its questions before parents were asked, which is all that scores of categories are made from."""

    score: float
    pictures: tuple[float, ...]
    before_dependency: dict[int, float]


@dataclass(frozen=True)
class DpgScores:
    """Scores from 0 to 100: overall, the mean over prompts; by category, the mean over questions of last pictures."""

    prompts: int
    overall: float
    by_category: dict[str, float]
    by_broad_category: dict[str, float]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def score_prompt(dependency: Mapping[int, Sequence[int]], pictures: Sequence[Sequence[str]]) -> PromptScore:
    """The score of one prompt; only the answer "yes" is one.

    Questions are gone through once, in order: a wrong answer reaches its grandchildren only where each generation
    comes after its parents, as in the published table.

    TencentQQGYLab/ELLA `dpg_bench/compute_dpg_bench.py::compute_dpg_one_sample`.

    Raises:
        HarmonError: no picture, another number of answers than questions, or a parent that is no question.
    """
    if not pictures or not dependency:
        raise HarmonError("DPG-Bench: a prompt has no picture or no question; give at least one of each.")
    before: dict[int, float] = {}
    scores: list[float] = []
    for answers in pictures:
        if len(answers) != len(dependency):
            raise HarmonError(f"DPG-Bench: {len(answers)} answers to {len(dependency)} questions; give one to each.")
        before = {number: float(answer == "yes") for number, answer in zip(dependency, answers)}
        scores.append(_with_parents(dependency, before))
    return PromptScore(sum(scores) / len(scores), tuple(scores), before)


def score(prompts: Sequence[Answers], *, partial: bool = False) -> DpgScores:
    """DPG-Bench over 1065 prompts of four pictures each.

    The official script loses the first row of the table, so the first prompt lacks a question, and drops any prompt
    that it fails on; here every question of every prompt counts.

    Raises:
        HarmonError: another number of prompts or of pictures, and `partial` does not say so, or a prompt twice.
    """
    require("DPG-Bench, prompts", len({one.item for one in prompts}), DPG_PROMPTS, partial)
    if len({one.item for one in prompts}) != len(prompts):
        raise HarmonError("DPG-Bench: a prompt is answered twice; give the answers of each prompt once.")
    overall: list[float] = []
    of_category: dict[str, list[float]] = defaultdict(list)
    of_broad: dict[str, list[float]] = defaultdict(list)
    for one in prompts:
        require(f"DPG-Bench, pictures of {one.item}", len(one.pictures), DPG_IMAGES_A_PROMPT, partial)
        result = score_prompt(one.dependency, one.pictures)
        overall.append(result.score)
        for number, category in one.categories.items():
            of_category[category.strip()].append(result.before_dependency[number])
            of_broad[category.split("-")[0].strip()].append(result.before_dependency[number])
    return DpgScores(
        prompts=len(prompts),
        overall=100 * sum(overall) / len(overall),
        by_category={name: 100 * sum(some) / len(some) for name, some in sorted(of_category.items())},
        by_broad_category={name: 100 * sum(some) / len(some) for name, some in sorted(of_broad.items())},
    )


def _with_parents(dependency: Mapping[int, Sequence[int]], before: Mapping[int, float]) -> float:
    after = dict(before)
    for number, parents in dependency.items():
        for parent in parents:
            if parent == NO_PARENT:
                continue
            if parent not in after:
                raise HarmonError(f"DPG-Bench: question {number} depends on {parent}, which the prompt does not have.")
            if after[parent] == 0:
                after[number] = 0.0
                break
    return sum(after.values()) / len(after)
