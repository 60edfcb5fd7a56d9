"""A run folder is loaded, draws, answers and is measured; an untrained model scores near chance, not above."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from harmon.answering import AnswerConfig
from harmon.ask import answer_questions
from harmon.evaluation.run import EvaluationConfig, evaluate_run, quick_scores
from harmon.evaluation.suite import PROMPTS
from harmon.generate import draw_pictures
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.sampling_config import SamplingConfig
from harmon.trained import RunDescription, Trained, TrainedStage, describe_run, load
from pipelines.errors import ConfigurationError
from pipelines.scenes import HELD_OUT_PAIRS, make_scene, render
from tests.parts import need

torch.set_num_threads(1)
PARTS = Path(__file__).parents[2] / "harmon" / "parts" / "demo"
QUICK = SamplingConfig(ar_steps=2, diffusion_steps="4", clip_x0=3.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model has the demo's sizes and random weights."""
    need(
        (PARTS / "qwen" / "tokenizer.json").exists(),
        "the demo's tokenizer is not there: harmon/parts/demo/qwen",
    )
    folder = tmp_path_factory.mktemp("runs") / "demo"
    config = HarmonConfig.from_file(PARTS / "harmon.yaml")
    torch.manual_seed(0)
    weights = {name: value.clone() for name, value in Harmon(config).state_dict().items() if "lm_head" not in name}
    for stage, step in (("stage1-aaaaaaaa", 10), ("stage2-bbbbbbbb", 20)):
        checkpoint = folder / "train" / stage / "checkpoints" / f"{step:06d}"
        checkpoint.mkdir(parents=True)
        save_file(weights, checkpoint / "model.safetensors")
    (folder / "train" / "stage2-bbbbbbbb" / "checkpoints" / ".writing-000030-1").mkdir()
    stages = (
        TrainedStage(folder="stage1-aaaaaaaa", px=32),
        TrainedStage(folder="stage2-bbbbbbbb", px=64),
        TrainedStage(folder="stage3-cccccccc", px=128),
    )
    described = RunDescription(model=config, stages=stages)
    describe_run(folder, described, PARTS / "qwen", PARTS / "patch_latent.safetensors")
    return folder


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load(run)


def test_the_last_stage_with_a_complete_checkpoint_is_loaded(trained: Trained) -> None:
    assert (trained.stage, trained.step, trained.px) == ("stage2-bbbbbbbb", 20, 64)
    assert "stand-in" in trained.autoencoder.name


def test_a_moved_run_folder_still_loads(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(run)
    assert load(moved).step == 20


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no checkpoint"):
        load(tmp_path)


def test_a_picture_depends_on_its_prompt_and_seed_alone(trained: Trained) -> None:
    prompts = ["A red circle.", "A blue square on a plain white background.", "A green cross."]
    together = draw_pictures(trained, prompts, [1, 2, 3], QUICK)
    apart = draw_pictures(trained, prompts, [1, 2, 3], QUICK, batch=1)
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1
    assert (draw_pictures(trained, prompts[:1], [9], QUICK) != together[:1]).any()


def test_sampling_defaults_are_the_papers_and_departures_name_the_rest() -> None:
    published = HarmonConfig.preset("harmon-1.5b")
    paper = SamplingConfig().resolved(published)
    assert (paper.ar_steps, paper.cfg, paper.diffusion_steps, paper.temperature) == (64, 3.0, "100", 1.0)
    assert paper.clip_x0 is None and paper.departures(published) == []
    assert [departure.key for departure in QUICK.departures(published)] == [
        "sampling.ar_steps",
        "sampling.diffusion_steps",
        "sampling.clip_x0",
    ]


def test_answers_do_not_depend_on_the_batch(trained: Trained) -> None:
    pictures = [Image.fromarray(render(make_scene(1, index))) for index in range(3)]
    questions = ["How many objects are there?", "What colour is the circle?", "Is there a red cross?"]
    short = AnswerConfig(max_new_tokens=4)
    together = answer_questions(trained, pictures, questions, config=short)
    assert together == answer_questions(trained, pictures, questions, config=short, batch=1)
    assert len(together) == 3


def test_held_out_prompts_ask_for_pairs_that_no_training_text_names() -> None:
    config = EvaluationConfig(held_out=40, seen=40, two=40)
    wanted = {which: {item.pair for scene in config.prompts(which) for item in scene.objects} for which in PROMPTS}
    assert wanted["held_out"] <= HELD_OUT_PAIRS
    assert not (wanted["seen"] | wanted["two"]) & HELD_OUT_PAIRS


def test_a_run_is_measured_once_and_every_number_can_be_counted_again(run: Path) -> None:
    config = EvaluationConfig(held_out=4, seen=3, two=2, asked=5, sampling=QUICK)
    scores = evaluate_run(run, config)
    folder = run / "evaluation"
    assert scores == json.loads((folder / "scores.json").read_text())
    assert {which: part["colour"]["n"] for which, part in scores["generation"].items()} == {
        "held_out": 4,
        "seen": 3,
        "two": 2,
    }
    assert len(list((folder / "generated").iterdir())) == len(scores["pictures"]) == 9
    for which, part in scores["generation"].items():
        right = sum(picture["colours"] for picture in scores["pictures"] if picture["set"] == which)
        assert right == part["colour"]["right"]
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == sum(part["n"] for part in scores["answers"])
    assert sum(one["right"] for one in answers) == sum(part["right"] for part in scores["answers"])
    assert all((folder / one["file"]).exists() for one in answers)
    assert {one["key"] for one in scores["departures"]} == {
        "sampling.ar_steps",
        "sampling.diffusion_steps",
        "sampling.clip_x0",
    }

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert evaluate_run(run, config) == scores
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert evaluate_run(run, config.model_copy(update={"two": 1}))["generation"]["two"]["colour"]["n"] == 1


def test_an_untrained_model_gains_nothing(trained: Trained) -> None:
    found = quick_scores(trained, EvaluationConfig(held_out=24, seen=0, two=0, asked=6, sampling=QUICK))
    assert set(found.pictures) == {"held_out"} and set(found.tasks) == {"single_object", "colors"}
    assert found.pictures["held_out"].both.share <= 0.2
    assert all(score.score.share <= 0.7 for score in found.answers)
