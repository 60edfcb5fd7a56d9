"""Grids of ablations: every cell is a recipe that trains what its table says, and one command runs them to a table."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.ablation import Ablation, slug
from flows.cli import main
from flows.plan.plan import plan
from flows.recipe import load_recipe
from flows.train import forecast_of, stage_of
from flows.work import model_of, work_of
from pipelines.errors import ConfigurationError
from pipelines.loopback import free_port
from tests.flows.small_run import ROOT, SIZES

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
GRIDS = sorted((RECIPES / "ablations").glob("*.yaml"))


def cells(grid: Path) -> list[str]:
    return list(Ablation.read(grid).grid.cells)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.stem)
def test_every_cell_is_a_recipe_with_a_plan(grid: Path, tmp_path: Path) -> None:
    ablation = Ablation.read(grid, [f"data={tmp_path}/data"])
    names = set()
    for cell in ablation.grid.cells:
        recipe = ablation.recipe(cell, 1)
        names.add(recipe.name)
        assert {stage_of(recipe, number).seed for number in range(len(recipe.training.stages))} == {1}
        if grid.stem.endswith("paper"):
            for number in range(len(recipe.training.stages)):
                assert forecast_of(recipe, number).layout.fits
        else:
            stages = [step.name for step in plan(recipe).steps if step.draft.kind == "train"]
            assert stages == [f"train:{one.stage}" for one in recipe.training.stages]
            assert [work.step for work in work_of(recipe)][-3:] == ["evaluate", "audit", "report"]
    assert len(names) == len(ablation.grid.cells)


def test_there_is_a_grid_of_each_table_at_both_sizes() -> None:
    assert {grid.stem for grid in GRIDS} == {
        f"{name}-{size}" for name in ("table6", "table7", "table8", "figure6") for size in ("demo", "paper")
    }


@pytest.mark.parametrize("size", ["demo", "paper"])
def test_table_7_leaves_each_stage_out(size: str) -> None:
    ablation = Ablation.read(RECIPES / "ablations" / f"table7-{size}.yaml")
    trained = [[one.stage for one in ablation.recipe(cell, 0).training.stages] for cell in ablation.grid.cells]
    assert trained == [["stage2", "stage3"], ["stage1", "stage3"], ["stage1", "stage2"], ["stage1", "stage2", "stage3"]]


@pytest.mark.parametrize(("size", "recipe"), [("demo", "demo"), ("paper", "paper-0.5b")])
def test_the_cell_that_changes_nothing_is_the_recipe(size: str, recipe: str) -> None:
    whole = Ablation.read(RECIPES / "ablations" / f"table7-{size}.yaml").recipe("4 all stages", 0)
    plain = load_recipe(RECIPES / f"{recipe}.yaml")
    assert [stage_of(whole, number) for number in range(3)] == [stage_of(plain, number) for number in range(3)]
    assert model_of(whole) == model_of(plain)
    assert [one.gate for one in whole.training.stages] == [one.gate for one in plain.training.stages]


@pytest.mark.parametrize(("size", "sides"), [("demo", (64, 96, 128)), ("paper", (256, 384, 512))])
def test_table_8_changes_the_last_stages_pictures(size: str, sides: tuple[int, ...]) -> None:
    ablation = Ablation.read(RECIPES / "ablations" / f"table8-{size}.yaml")
    assert tuple(stage_of(ablation.recipe(cell, 0), 2).px for cell in ablation.grid.cells) == sides


@pytest.mark.parametrize("size", ["demo", "paper"])
def test_table_6_varies_what_sees_and_draws_nothing(size: str) -> None:
    ablation = Ablation.read(RECIPES / "ablations" / f"table6-{size}.yaml")
    recipes = [ablation.recipe(cell, 0) for cell in ablation.grid.cells]
    assert [model_of(recipe).understanding_encoder for recipe in recipes] == ["siglip", "vqgan", "vae", "mar"]
    for recipe in recipes:
        for number in range(3):
            stage = stage_of(recipe, number)
            assert (stage.ratio.text2image, stage.learning_rate.decoder) == (0, None)
            assert recipe.training.stages[number].gate is None


@pytest.mark.parametrize("size", ["demo", "paper"])
def test_figure_6_gives_a_task_alone_as_many_samples_as_both_together(size: str) -> None:
    ablation = Ablation.read(RECIPES / "ablations" / f"figure6-{size}.yaml")
    both, understanding, generation, *_ = (ablation.recipe(cell, 0) for cell in ablation.grid.cells)
    for number in range(3):
        joint = stage_of(both, number)
        parts = joint.ratio.text + joint.ratio.image2text, joint.ratio.text2image
        for recipe, share in ((understanding, parts[0]), (generation, parts[1])):
            alone = stage_of(recipe, number)
            assert alone.global_batch == pytest.approx(joint.global_batch * share / sum(parts), rel=0.05)
            assert alone.steps == joint.steps


def test_a_variation_of_a_stage_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is no stage 'stage4'"):
        load_recipe(RECIPES / "demo.yaml", ["training.variation={leave_out: [stage4]}"])
    with pytest.raises(ConfigurationError, match="leave_ou"):
        load_recipe(RECIPES / "demo.yaml", ["training.variation={leave_ou: [stage1]}"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="minutes of four small runs: only with HARMON_SOAK=1")
def test_table_7_at_demo_size_runs_to_its_table_and_nothing_of_it_twice(tmp_path: Path) -> None:
    """The grid as it stands, on a small corpus, with 4 train steps a stage."""
    settings = (*SIZES, f"data={tmp_path}/data", f"web.port={free_port()}", "training.launch.workers=0")
    command = [sys.executable, "-m", "flows.cli", "ablate", str(RECIPES / "ablations" / "table7-demo.yaml")]
    command += ["--seed", "0", *(one for setting in settings for one in ("--set", setting))]
    said = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        said.append(done.stdout.decode())
    rows = [line for line in said[0].splitlines() if re.match(r"\| \d .* \| 1 \|", line)]
    assert len(rows) == 4 and "- |" not in "".join(rows)
    assert said[0].endswith(said[1]) and "seed 0" in said[0] and "seed 0" not in said[1]
    trained = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs/ablations/demo/seed0/train").iterdir())
    assert trained == ["stage1"] + ["stage2"] * 2 + ["stage3"] * 3  # what cells train alike is trained once


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(
        f"title: Small\nrecipe: {RECIPES}/demo.yaml\nruns: {tmp_path}/runs\nseeds: [0, 1]\n"
        "cells:\n  first: {}\n  second, longer: {training: {variation: {leave_out: [stage1]}}}\n"
    )
    return file


def finish(ablation: Ablation, cell: str, seed: int, right: float) -> None:
    """As `Ablation.run` leaves it."""
    from flows.ablation import _key

    file = ablation.folder / f"{slug(cell)}-seed{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    score = {"share": right, "chance": 0.25}
    generation = {"held_out": {"colour": score, "shape": score}, "two": {"colour": score, "both": score}}
    key = _key(ablation.recipe(cell, seed))
    file.write_text(json.dumps({"key": key, "generation": generation, "answers": [score, score]}))


def test_the_table_shows_mean_and_deviation_of_the_seeds_that_are_done(grid: Path) -> None:
    ablation = Ablation.read(grid)
    finish(ablation, "first", 0, 0.5)
    finish(ablation, "first", 1, 0.7)
    finish(ablation, "second, longer", 1, 0.4)
    done = CliRunner().invoke(main, ["ablate", str(grid), "--table"])
    assert done.exit_code == 0, done.output
    assert "| first | 2 | 60.0 ± 14.1 | 60.0 ± 14.1 |" in done.output
    assert "| second, longer | 1 | 40.0 | 40.0 |" in done.output
    told = json.loads((ablation.folder / "table.json").read_text())
    assert told["second, longer"]["answers over chance"] == [pytest.approx(0.15), None]


def test_what_was_scored_by_another_recipe_does_not_count(grid: Path) -> None:
    ablation = Ablation.read(grid)
    finish(ablation, "first", 0, 0.5)
    assert ablation.result("first", 0)
    assert Ablation.read(grid, ["evaluation.asked=7"]).result("first", 0) is None


def test_cells_that_are_done_are_not_run_and_one_that_fails_ends_the_rest(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = Ablation.read(grid)
    finish(ablation, "first", 0, 0.5)
    asked: list[list[str]] = []

    def ran(fails: str) -> Callable[..., Any]:
        def run(command: list[str]) -> Any:
            asked.append(command[4:])
            cell, seed = command[command.index("--cell") + 1], int(command[command.index("--seed") + 1])
            if cell != fails:
                finish(ablation, cell, seed, 0.6)
            return type("Done", (), {"returncode": int(cell == fails)})

        return run

    monkeypatch.setattr("flows.ablation.subprocess.run", ran("second, longer"))
    failed = CliRunner().invoke(main, ["ablate", str(grid)])
    assert failed.exit_code == 3
    assert "second, longer, seed 0 has failed" in failed.output
    assert [one[one.index("--cell") + 1] for one in asked] == ["second, longer"]
    monkeypatch.setattr("flows.ablation.subprocess.run", ran(""))
    done = CliRunner().invoke(main, ["ablate", str(grid)])
    assert done.exit_code == 0, done.output
    assert "| first | 2 |" in done.output and "| second, longer | 2 |" in done.output
