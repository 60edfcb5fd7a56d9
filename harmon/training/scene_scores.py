"""Scores of a stage's checkpoints on scenes (harmon.evaluation.scenes) while it trains, in its folder:

scores.jsonl    a line a checkpoint, by train step: weights, suite, how pictures were drawn, and

    scenes      shares of right cases: {"held_out": {"colour": 0.75, …}, …, "answers": {"count": 0.5, …}}
    chance      what costs nothing of each, where such a level exists
    cases       of how many each is
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from harmon.evaluation.run import EvaluationConfig, quick_scores
from harmon.evaluation.scene_tasks import TASKS
from harmon.evaluation.scenes import KINDS, Score
from harmon.evaluation.suite import PROMPTS, SceneSuite
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained
from harmon.training.job import parsed_lines
from pipelines.disk import write_whole

SCORES = "scores.jsonl"
METRIC = "scenes/"
"""What the names of these scores begin with where a gate names one."""
OF_PICTURES = "colour", "shape", "both", "whole", "background"
OF_TASKS, ANSWERS = "tasks", "answers"


class WatchedScenes(SceneSuite):
    """A small suite, of another seed than the evaluation's: what a gate selects by is not what is reported."""

    seed: int = 20_250_329
    held_out: int = Field(default=32, ge=0)
    seen: int = Field(default=32, ge=0)
    two: int = Field(default=32, ge=0)
    three: int = Field(default=16, ge=0)
    asked: int = Field(default=64, ge=0)

    def metrics(self) -> list[str]:
        """The names of its scores, as gates ask for them."""
        drawn = [f"{METRIC}{which}/{name}" for which in PROMPTS if getattr(self, which) for name in OF_PICTURES]
        one, two = bool(self.held_out or self.seen), bool(self.two)
        asked = {"single_object": one, "colors": one, "counting": two or bool(self.three)}
        drawn += [f"{METRIC}{OF_TASKS}/{task}" for task in TASKS if asked.get(task, two)]
        return drawn + ([f"{METRIC}{ANSWERS}/{kind}" for kind in KINDS] if self.asked else [])


def score_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of the stage in `folder`, by train step."""
    path = folder / SCORES
    return parsed_lines(path.read_text()) if path.exists() else []


def line_of(folder: Path, step: int, suite: WatchedScenes) -> dict[str, Any] | None:
    """The line of the checkpoint of `step` by this suite, None where it has none."""
    wanted = suite.model_dump()
    return next((line for line in score_lines(folder) if line["step"] == step and line["suite"] == wanted), None)


def write_scene_scores(suite: WatchedScenes, trained: Trained, folder: Path) -> None:
    """Score `trained`, a checkpoint of the stage in `folder`, and write its line, in place of one of the same step. The
    file appears whole.
    """
    how = SamplingConfig(**trained.sampling).resolved(trained.model.config)
    found = quick_scores(trained, EvaluationConfig(**suite.model_dump(), sampling=how))
    scores: dict[str, dict[str, Score]] = {
        which: {name: getattr(one, name) for name in OF_PICTURES} for which, one in found.pictures.items()
    }
    scores |= {OF_TASKS: {str(task): score for task, score in found.tasks.items()}} if found.tasks else {}
    scores |= {ANSWERS: {one.kind: one.score for one in found.answers}} if found.answers else {}
    lines = {line["step"]: line for line in score_lines(folder)}
    lines[trained.step] = {
        "step": trained.step,
        "weights": trained.fingerprint,
        "suite": suite.model_dump(),
        "sampling": how.model_dump(mode="json"),
        "scenes": _each(scores, "share"),
        "chance": _each(scores, "chance"),
        "cases": _each(scores, "n"),
    }
    write_whole(folder / SCORES, "".join(json.dumps(lines[step]) + "\n" for step in sorted(lines)).encode())


def _each(scores: dict[str, dict[str, Score]], what: str) -> dict[str, dict[str, float | None]]:
    """One field of every score that has a case."""
    return {
        group: {name: getattr(score, what) for name, score in some.items() if score.n} for group, some in scores.items()
    }
