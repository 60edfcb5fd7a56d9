"""`harmon latents` and `harmon train` as a person uses them, on a corpus of a few scenes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from flows import train as training
from flows import training_work, work
from flows.cli import main
from flows.recipe import load_recipe
from flows.train import dry_run
from flows.training_work import job_of, launched_job
from harmon.latents import write_latents
from harmon.training.decoding import Online
from harmon.training.launch import Launch
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from tests.harmon.miniature import TOKENIZER, make_autoencoder, make_corpus, tiny_model

Harmon = Callable[..., Result]
CUT = {
    "px": 64, "global_batch": 24, "block_rows": 4, "steps": 6, "warmup_share": 0.25, "learning_rate": {"decoder": 1e-2},
}  # fmt: skip
GATE = {"metric": "loss/text2image", "at_most": 100.0}
SAMPLES = {"every": 2, "prompts": ["a red circle"], "questions": ["What is it?"]}
WATCH = {"tensorboard": True, "samples": SAMPLES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    make_autoencoder(folder / "patch_latent.safetensors")
    make_corpus(folder / "data" / "corpus")
    (folder / "model.yaml").write_text(tiny_model().model_dump_json())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_in(folder)))
    return folder


def recipe_in(folder: Path) -> dict[str, object]:
    seeing = [{"set": "corpus", "rows": "image2text", "text": "conversation"}]
    drawing = [{"set": "corpus", "rows": "text2image", "text": "caption"}]
    model = {"model": str(TOKENIZER), "model_name": "tiny", "prompt": "rewrite-v1", "datasets": []}
    return {
        "name": "small", "data": str(folder / "data"), "runs": str(folder / "run"), "sources": {},
        "recaption": model, "sets": {"corpus": {}},
        "training": {
            "model": str(folder / "model.yaml"), "autoencoder": str(folder / "patch_latent.safetensors"),
            "weights": [], "tokenizer": str(TOKENIZER), "launch": {"workers": 0}, "log_every": 1,
            "checkpoint_every": 2, "watch": WATCH,
            "stages": [
                {"stage": "stage1", "departures": CUT, "image2text": seeing, "text2image": drawing, "gate": GATE},
                {"stage": "finetune-o", "departures": CUT, "text2image": drawing},
            ],
        },
    }  # fmt: skip


def make_latents(folder: Path) -> None:
    write_latents(Dataset(folder / "data" / "corpus"), 64, folder / "patch_latent.safetensors")


@pytest.fixture
def harmon(folder: Path) -> Harmon:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(one) for one in arguments])

    return run


def test_latents_then_a_dry_run_then_training_in_three_goes(folder: Path, harmon: Harmon) -> None:
    recipe = folder / "recipe.yaml"
    early = json.loads(harmon("train", recipe, "--stage", "stage1", "--dry-run", "--json").stdout)
    assert "run `harmon latents" in early["why_no_samples"]

    autoencoder = folder / "patch_latent.safetensors"
    made = harmon("latents", folder / "data" / "corpus", "--px", 64, "--autoencoder", autoencoder, "--json")
    assert json.loads(made.stdout)["encoded"] == 24
    again = harmon("latents", folder / "data" / "corpus", "--px", 64, "--autoencoder", autoencoder)
    assert "24 of 36 rows" in again.stdout and "no_image: 12" in again.stdout

    ranged = ("--set", "training.launch.workers=[2,4]")
    told = json.loads(harmon("train", recipe, "--stage", "stage1", "--dry-run", *ranged, "--json").stdout)
    assert told["why_no_samples"] is None
    assert [one["task"] for one in told["samples"]] == ["image2text"] * 8 + ["text2image"] * 16
    assert told["samples"][0]["text"] and len(told["samples"][0]["key"]) == 32
    assert told["forecast"]["workers"] == 4 and told["hours"] > 0 and told["largest_memory"] > 2**30
    assert not (folder / "run").exists()

    stopped = harmon("train", recipe, "--stage", "stage1", "--stop-after", 3, "--json")
    assert stopped.exit_code == 0, stopped.output
    stand = json.loads(stopped.stdout)
    assert (stand["step"], stand["done"]) == (3, False)
    refused = harmon("train", recipe, "--stage", "stage1")
    assert refused.exit_code == 2 and "stands at train step 3 of 6" in refused.stderr and "--resume" in refused.stderr
    done = json.loads(harmon("train", recipe, "--stage", "stage1", "--resume", "--json").stdout)
    assert done["done"] and done["folder"] == stand["folder"]
    steps = [json.loads(line)["step"] for line in (Path(done["folder"]) / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert "stage1 is done" in harmon("train", recipe, "--stage", "stage1").stdout

    assert list((Path(done["folder"]) / "tensorboard").iterdir())
    (answered,) = (json.loads(line) for line in (Path(done["folder"]) / "samples/000003/answers.jsonl").open())
    assert answered["question"] == "What is it?"
    assert (Path(done["folder"]) / "samples/000003" / answered["file"]).exists()

    shut = ("--set", "training.stages.0.gate.at_most=-9", "--stage", "finetune-o")
    refused = harmon("train", recipe, *shut)
    assert refused.exit_code == 3 and "The gate behind stage1 is shut: loss/text2image is" in refused.stderr
    assert json.loads(harmon("train", recipe, "--stage", "finetune-o", "--json").stdout)["done"]


def test_stopping_early_trains_as_the_recipe_says(
    folder: Path, harmon: Harmon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_latents(folder)
    asked: list[object] = []
    monkeypatch.setattr(training_work, "train_stage", lambda job, launch, on_line, until: asked.extend((launch, until)))
    settings = ("--set", f"runs={tmp_path}", "--set", "training.launch.workers=[2,4]")
    answer = harmon("train", folder / "recipe.yaml", "--stage", "stage1", "--stop-after", 3, *settings)
    assert answer.exit_code == 0, answer.output
    assert asked == [Launch(workers=(2, 4)), 3]


def test_a_stage_in_a_store_stands_and_is_taken_away_there_under_its_runs_name(folder: Path, tmp_path: Path) -> None:
    make_latents(folder)
    settings = [f"runs={tmp_path / 'run'}", f"training.store={tmp_path / 'store'}"]
    recipe = load_recipe(folder / "recipe.yaml", settings)
    stand = training.train_one(recipe, "stage1", resume=False, stop_after=2)
    (kept,) = (tmp_path / "store").iterdir()
    assert kept.name == "small" and [path.name for path in kept.iterdir()] == ["run"]
    shutil.rmtree(tmp_path / "run")  # as on another machine
    assert (stand.step, training.standing(job_of(recipe, 0)).step) == (2, 2)
    (undo,) = (one.undo for one in work.work_of(recipe) if one.name == "train:stage1")
    undo()
    assert training.standing(job_of(recipe, 0)).step == 0


def test_a_dry_run_tells_the_layout_that_the_job_has(folder: Path, harmon: Harmon) -> None:
    recipe = load_recipe(folder / "recipe.yaml", ["training.execution={parallel: auto}", "training.launch.workers=3"])
    told, job = dry_run(recipe, "stage1"), launched_job(recipe, 0)
    assert job.execution.parallel == told.forecast.layout.parallel == "ddp"
    assert job.execution.micro_rows == told.forecast.layout.micro_rows == 2  # of 4 on 3 workers
    by_hand = ["--set", "training.execution={parallel: fsdp, micro_rows: 1, gpu: H100-80G}"]
    answer = harmon("train", folder / "recipe.yaml", "--stage", "stage1", "--dry-run", "--gpus", 2, *by_hand)
    assert "layout on 2 H100-80G: fsdp, micro-batches of 1 rows, recompute none" in answer.stdout
    assert "matrix products in float32" in answer.stdout


def test_a_recipe_may_have_pictures_decoded_while_training(folder: Path, tmp_path: Path) -> None:
    settings = [f"runs={tmp_path / 'run'}", "training.latents={crop: centre, workers: 0, resizer: torch}"]
    recipe = load_recipe(folder / "recipe.yaml", settings)
    assert not [one.name for one in work.work_of(recipe) if one.step == "latents"]
    online = job_of(recipe, 0).latents
    assert isinstance(online, Online) and (online.crop, online.workers, online.resizer) == ("centre", 0, "torch")
    assert online.rejects == str(tmp_path / "run" / "train" / "rejects.jsonl")
    stand = training.train_one(recipe, "stage1", resume=False, stop_after=2)
    assert stand.step == 2
    usual = load_recipe(folder / "recipe.yaml", [*settings[:1], "training.latents=online"])
    assert job_of(usual, 0).latents == Online(autoencoder=online.autoencoder, rejects=online.rejects)


def test_a_misspelt_way_to_latents_is_refused(folder: Path) -> None:
    for wrong in ("onlin", "{crops: centre}"):
        with pytest.raises(ConfigurationError, match=r"training\.latents"):
            load_recipe(folder / "recipe.yaml", [f"training.latents={wrong}"])


def test_a_job_whose_layout_fits_nowhere_is_refused_at_its_launch_and_not_when_looked_at(folder: Path) -> None:
    settings = ["training.execution={parallel: auto, gpu: A100-40G}", "training.model=harmon-1.5b"]
    settings += ["training.stages.0.stage=stage3", "training.stages.0.departures={}"]
    recipe = load_recipe(folder / "recipe.yaml", settings)
    assert job_of(recipe, 0).execution.parallel == "auto"
    with pytest.raises(ConfigurationError, match="finds no layout that fits on 1 A100-40G"):
        launched_job(recipe, 0)


def test_a_stage_waits_for_the_one_before_it(folder: Path, harmon: Harmon, tmp_path: Path) -> None:
    answer = harmon("train", folder / "recipe.yaml", "--stage", "finetune-o", "--set", f"runs={tmp_path}")
    assert answer.exit_code == 3 and "train it first" in answer.stderr


def test_an_unknown_stage_is_refused_with_the_nearest_one(folder: Path, harmon: Harmon) -> None:
    answer = harmon("train", folder / "recipe.yaml", "--stage", "stage11")
    assert answer.exit_code == 2 and "did you mean 'stage1'" in answer.stderr


def test_a_plan_says_what_each_stage_takes_on_a100s(folder: Path, harmon: Harmon) -> None:
    settings = ("--set", "training.model=harmon-1.5b", "--set", "training.stages.0.departures={}")
    answer = harmon("plan", folder / "recipe.yaml", "--gpus", 32, *settings)
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("train:stage1: "))
    assert any("32 A100-80G: ddp, micro-batches of 16 rows" in line for line in lines[start + 1 :])
    assert any("GPU-hours" in line for line in lines[start:])
