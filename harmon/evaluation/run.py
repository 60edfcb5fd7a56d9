"""Evaluating a run on scenes that it never trained on: pictures drawn from prompts, and questions answered.

    RUN/evaluation/scores.json      every score, picture by picture, with the settings and the checkpoint
    RUN/evaluation/generated/*.png  the pictures drawn
    RUN/evaluation/asked/*.png      the pictures asked about
    RUN/evaluation/answers.jsonl    every question with the right answer and the one given

Prompts and questions are pure functions of the seed (harmon.evaluation.suite).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from harmon.ask import answer_questions
from harmon.convert.released import Named
from harmon.evaluation.scene_tasks import Task, score_tasks
from harmon.evaluation.scenes import (
    AnswerScore,
    Asked,
    GenerationScores,
    Judged,
    Score,
    judge,
    score_answers,
    score_pictures,
    wanted_of,
)
from harmon.evaluation.suite import PROMPTS, Prompts, SceneSuite
from harmon.generate import draw_pictures
from harmon.sampling_config import SamplingConfig
from harmon.seeds import stream
from harmon.trained import Trained, load, newest_checkpoint, weights_of
from harmon.training.job import file_hash
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError
from pipelines.scenes import make_scene, questions, render

VERSION = 1  # raised when the same run and settings would score otherwise
SCORES = "scores.json"


class EvaluationConfig(SceneSuite):
    """What is measured, and how pictures are drawn for it."""

    sampling: SamplingConfig = SamplingConfig()
    average: bool = False
    """Measure the averaged weights, which a recipe with training.average keeps, in place of the weights."""


def evaluate_run(run: Path, config: EvaluationConfig, device: str = "cpu") -> dict[str, Any]:
    """Measure the newest checkpoint of `run`, write RUN/evaluation, and return what scores.json holds.

    Nothing is done where the same weights were measured with the same settings. The folder appears whole.
    """
    trained = load(run, Named(average=config.average), device=device)
    final, attempt = run / "evaluation", run / "evaluation.writing"
    key = _key(trained.weights[0], trained.px, run, config)
    standing = _standing(final, key)
    if standing is not None:
        return standing
    shutil.rmtree(attempt, ignore_errors=True)
    (attempt / "generated").mkdir(parents=True)
    (attempt / "asked").mkdir()
    judged = {which: _draw_and_judge(trained, config, which, attempt) for which in PROMPTS}
    asked = _ask(trained, config, attempt)
    scores = {
        "key": key,
        "checkpoint": {"stage": trained.stage, "step": trained.step, "px": trained.px},
        "autoencoder": trained.autoencoder.name,
        "settings": config.model_dump(mode="json"),
        "departures": [vars(departure) for departure in config.sampling.departures(trained.model.config)],
        "generation": {which: score_pictures(some).report() for which, some in judged.items() if some},
        "tasks": {
            task: score.report() for task, score in score_tasks(one for some in judged.values() for one in some).items()
        },
        "answers": [score.report() for score in score_answers(asked)],
        "pictures": [_picture_record(which, i, one) for which in PROMPTS for i, one in enumerate(judged[which])],
    }
    (attempt / SCORES).write_text(json.dumps(scores, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    attempt.rename(final)
    return scores


def is_evaluated(run: Path, config: EvaluationConfig) -> bool:
    """Whether the newest checkpoint of `run` has been measured with these settings."""
    try:
        _, stage, checkpoint = newest_checkpoint(run)
    except ConfigurationError:
        return False
    weights = weights_of(checkpoint, config.average)
    return _standing(run / "evaluation", _key(weights, stage.px, run, config)) is not None


@dataclass(frozen=True)
class QuickScores:
    """The scores alone."""

    pictures: dict[Prompts, GenerationScores]
    tasks: dict[Task, Score]
    answers: list[AnswerScore]


def quick_scores(trained: Trained, config: EvaluationConfig) -> QuickScores:
    """Scores of checkpoints while they train, and for a curve over them: nothing is written."""
    judged = {which: _draw_and_judge(trained, config, which, None) for which in PROMPTS}
    return QuickScores(
        pictures={which: score_pictures(some) for which, some in judged.items() if some},
        tasks=score_tasks(one for some in judged.values() for one in some),
        answers=score_answers(_ask(trained, config, None)),
    )


def _key(weights: Path, px: int, run: Path, config: EvaluationConfig) -> str:
    later = {name for name in ("average", "three") if not getattr(config, name)}  # keys of before know neither
    settings = config.model_dump(mode="json", exclude=later)
    parts = [VERSION, settings, px]
    parts += [file_hash(path) for path in (weights, *sorted((run / "model").glob("[!.]*")))]
    return sha256_hex(canonical_json(parts))


def _standing(folder: Path, key: str) -> dict[str, Any] | None:
    """The scores that stand in `folder`, if they are of this key."""
    try:
        scores: dict[str, Any] = json.loads((folder / SCORES).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return scores if scores.get("key") == key else None


def _draw_and_judge(trained: Trained, config: EvaluationConfig, which: Prompts, folder: Path | None) -> list[Judged]:
    wanted = [wanted_of(scene) for scene in config.prompts(which)]
    seeds = [stream(config.seed, "evaluation", which, index) for index in range(len(wanted))]
    drawn = draw_pictures(trained, [one.prompt for one in wanted], seeds, config.sampling)
    if folder:
        for index, picture in enumerate(drawn):
            Image.fromarray(picture).save(folder / _file(which, index))
    return [judge(one, picture) for one, picture in zip(wanted, drawn, strict=True)]


def _ask(trained: Trained, config: EvaluationConfig, folder: Path | None) -> list[Asked]:
    scenes = [make_scene(config.seed, index, split="unseen") for index in range(config.asked)]
    pictures = [Image.fromarray(render(scene)) for scene in scenes]
    todo = [(index, question) for index, scene in enumerate(scenes) for question in questions(scene)]
    given = answer_questions(
        trained, [pictures[index] for index, _ in todo], [question.question for _, question in todo]
    )
    asked = [
        Asked(question.kind, question.question, question.answer, said)
        for (_, question), said in zip(todo, given, strict=True)
    ]
    if folder:
        for index, picture in enumerate(pictures):
            picture.save(folder / _file("asked", index))
        _write_answers(folder / "answers.jsonl", [index for index, _ in todo], asked)
    return asked


def _write_answers(path: Path, indices: Sequence[int], asked: Sequence[Asked]) -> None:
    lines = (
        json.dumps(vars(one) | {"right": one.right, "file": _file("asked", index)})
        for index, one in zip(indices, asked, strict=True)
    )
    path.write_text("".join(f"{line}\n" for line in lines))


def _file(which: str, index: int) -> str:
    return f"asked/{index:04d}.png" if which == "asked" else f"generated/{which}-{index:04d}.png"


def _picture_record(which: Prompts, index: int, one: Judged) -> dict[str, Any]:
    """A generated picture in scores.json: its file, what was asked for, what was seen, and what was right."""
    return {
        "set": which,
        "file": _file(which, index),
        "prompt": one.wanted.prompt,
        "wanted": [" ".join(pair) for pair in one.wanted.pairs],
        "seen": one.sight.say(),
        "colours": one.colours,
        "shapes": one.shapes,
        "whole": one.whole,
        "background": one.background,
    }
