"""Scores over a run's training: every checkpoint that it kept, measured on its own.

RUN/curve.jsonl   a line a checkpoint: its name, minutes of training up to it, shares of right pictures
"""

import json
from pathlib import Path
from typing import Any

from harmon.evaluation.run import EvaluationConfig, quick_scores
from harmon.trained import TrainedStage, description_of, made_ready, open_run_at
from harmon.training.checkpoint import complete_checkpoints
from harmon.training.job import metrics_lines

CURVE = "curve.jsonl"


def write_curve(run: Path, config: EvaluationConfig, device: str = "cpu") -> list[dict[str, Any]]:
    """Measure every kept checkpoint of `run`, write RUN/curve.jsonl, which appears whole, and return its lines.

    `colour` and `shape` are shares of the held-out prompts, `two` of the prompts for two objects whose picture has
    both colours. Raises ConfigurationError where `run` is no run folder.
    """
    lines: list[dict[str, Any]] = []
    before = 0.0
    for stage in description_of(run).stages:
        clock = training_seconds(run, stage)
        for checkpoint in complete_checkpoints(run / "train" / stage.folder / "checkpoints"):
            trained = made_ready(open_run_at(run, stage, checkpoint, config.average), device)
            pictures = quick_scores(trained, config).pictures
            line: dict[str, Any] = {"label": f"{stage.folder} {trained.step}"}
            line["minutes"] = round((before + clock[trained.step]) / 60, 2)
            if one := pictures.get("held_out"):
                line |= {"colour": one.colour.share, "shape": one.shape.share}
            if two := pictures.get("two"):
                line["two"] = two.colour.share
            lines.append(line)
        before += max(clock.values(), default=0.0)
    attempt = run / f"{CURVE}.writing"
    attempt.write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempt.replace(run / CURVE)
    return lines


def training_seconds(run: Path, stage: TrainedStage) -> dict[int, float]:
    """Seconds of training within `stage` up to each step that has a line of metrics, from their rates."""
    seconds: dict[int, float] = {}
    total, samples = 0.0, 0
    for line in metrics_lines(run / "train" / stage.folder):
        seen = sum(line["samples"].values())
        total += (seen - samples) / line["samples_per_second"]
        samples = seen
        seconds[line["step"]] = total
    return seconds
