"""The whole recipe, small, through every real part: img2dataset, Transformers, Ray Train, Prefect's server."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flows.recipe import load_recipe
from flows.run import run_recipe
from flows.work import datasets_of, work_of
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.web import planted
from tests.filtering.pictured import tiny_clip
from tests.flows.small_run import DATASETS, RECIPE, SIZES, SmallRun
from tests.s3_server import s3_root, s3_server

__all__ = ["s3_root", "s3_server"]

BEFORE_TRAINING = ("publish", "download", "rewrite", "clarity", "select", "latents")
KILLS = 10 if os.environ.get("HARMON_SOAK") else 3


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_run_ends_with_a_report_and_sound_datasets(small_run: SmallRun) -> None:
    assert (small_run.run / "report.html").stat().st_size > 100_000
    assert "The report is" in small_run.log()
    for name in DATASETS:
        assert audit(Dataset(small_run.data / name), deep=True).sound, name


@pytest.mark.slow
def test_every_planted_row_stands_in_a_rejects_table_with_its_reason(small_run: SmallRun) -> None:
    recipe = load_recipe(RECIPE, [*SIZES, f"web.port={small_run.port}"])
    found = set()
    for name in DATASETS:
        for row in Dataset(small_run.data / name).rejects().to_pylist():
            found.add((row["source"], row["row_id"], row["step"], row["reason"]))
    for bad in planted(recipe.web):
        twin = ("photographs", "cat", bad.step, bad.reason)  # a duplicate's twin may go in its stead
        assert (bad.source, bad.row_id, bad.step, bad.reason) in found or (bad.reason == "duplicate" and twin in found)


@pytest.mark.slow
def test_rows_in_equal_rows_out_and_rejected_or_failed_at_each_step(small_run: SmallRun) -> None:
    for name in DATASETS:
        for commit in Dataset(small_run.data / name).commits():
            lost = sum(commit.rejected.values()) + sum(commit.failed.values())
            assert commit.rows_in == commit.rows_out + lost, (name, commit.step)


@pytest.mark.slow
def test_three_stages_trained_each_from_the_last(small_run: SmallRun) -> None:
    described = json.loads((small_run.run / "model" / "model.json").read_text())
    folders = [small_run.run / "train" / stage["folder"] for stage in described["stages"]]
    assert [folder.name[:6] for folder in folders] == ["stage1", "stage2", "stage3"]
    assert all((folder / "done.json").exists() for folder in folders)
    lines = [json.loads(line) for line in (folders[2] / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4


@pytest.mark.slow
def test_running_again_does_no_work_and_says_so(small_run: SmallRun) -> None:
    before, start = files_below(small_run.folder / "data"), time.monotonic()
    said = small_run.finish()
    assert "nothing was to do" in said
    assert files_below(small_run.folder / "data") == before
    assert time.monotonic() - start < 60  # 20 s alone on two cores; tests share them


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_damaged_dataset_stops_the_run_each_time_it_is_run(small_run: SmallRun, tmp_path: Path) -> None:
    copy = SmallRun(tmp_path / "copy", small_run.port)
    shutil.copytree(small_run.folder / "data", copy.data)
    shutil.copytree(small_run.run, copy.run)
    (copy.run / "audit.json").unlink()
    tar = next((copy.data / "refined" / "images").rglob("*.tar"))
    damaged = bytearray(tar.read_bytes())
    damaged[700] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(damaged)
    for _ in range(2):
        assert copy.start().wait(timeout=300) == 3, copy.log()[-2000:]
    assert "unsound" in copy.log()
    assert "Traceback" not in copy.log()


@pytest.mark.slow
def test_steps_before_from_must_be_done(small_run: SmallRun, tmp_path: Path) -> None:
    other = SmallRun(tmp_path / "fresh", small_run.port)
    assert other.start("--from", "train").wait(timeout=120) == 2
    assert "before it is not done" in other.log()


@pytest.mark.slow
def test_a_step_of_the_run_folder_is_redone_alone_and_says_the_same(small_run: SmallRun) -> None:
    scores = small_run.run / "evaluation" / "scores.json"
    before, data = scores.read_bytes(), files_below(small_run.data)
    written = scores.stat().st_mtime_ns
    said = json.loads(small_run.finish("--redo", "evaluate", "--json").splitlines()[-1])
    assert said["did"] == ["evaluate:demo"]
    assert scores.stat().st_mtime_ns > written and scores.read_bytes() == before
    assert files_below(small_run.data) == data


@pytest.mark.slow
def test_redoing_the_training_takes_every_stage_away_a_half_trained_one_too(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_run.run, tmp_path / "run")
    done = sorted((tmp_path / "run" / "train").glob("stage2-*/done.json"))
    done[0].unlink()  # stage 2 has checkpoints and did not finish
    recipe = load_recipe(RECIPE, [*small_run.settings, f"runs={tmp_path / 'run'}"])
    monkeypatch.setattr("flows.run._as_flow", lambda recipe, works: [work.name for work in works])
    outcome = run_recipe(recipe, redo="train")
    assert outcome.did[0] == "train:stage1"
    assert not list((tmp_path / "run" / "train").glob("stage[12]-*"))


@pytest.mark.slow
def test_a_step_whose_result_stands_in_a_dataset_is_not_redone(small_run: SmallRun) -> None:
    recipe = load_recipe(RECIPE, small_run.settings)
    with pytest.raises(ConfigurationError, match="nothing is overwritten"):
        run_recipe(recipe, redo="rewrite")
    with pytest.raises(ConfigurationError, match="evaluate"):
        run_recipe(recipe, redo="evaluat")


@pytest.mark.slow
def test_the_curve_has_every_kept_checkpoint_in_the_order_of_training(small_run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(small_run.run, tmp_path / "run")
    curve = "curve={held_out: 4, seen: 0, two: 4, asked: 0, sampling: {ar_steps: 2, diffusion_steps: '5'}}"
    recipe = load_recipe(RECIPE, [*small_run.settings, f"runs={tmp_path / 'run'}", curve])
    work = next(work for work in work_of(recipe) if work.step == "curve")
    assert not work.is_done()
    work.do(lambda _: None)
    assert work.is_done()
    lines = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    stages = json.loads((tmp_path / "run" / "model" / "model.json").read_text())["stages"]
    assert [line["label"] for line in lines] == [f"{s['folder']} {step}" for s in stages for step in (2, 4)]
    minutes = [line["minutes"] for line in lines]
    assert minutes == sorted(minutes) and minutes[-1] > 0
    assert all(0 <= line[name] <= 1 for line in lines for name in ("colour", "shape", "two"))


@pytest.mark.slow
def test_the_aesthetic_score_is_a_step_where_weights_are_named(small_run: SmallRun, tmp_path: Path) -> None:
    """A tiny CLIP and a drawn head stand in for ViT-L/14 and LAION's."""
    shutil.copytree(small_run.data / "photographs", tmp_path / "data" / "photographs")
    clip, head = tiny_clip(tmp_path), tmp_path / "head.safetensors"
    save_file({"weight": torch.randn(1, 768), "bias": torch.zeros(1)}, head)
    settings = [f"data={tmp_path / 'data'}", f"aesthetic={{clip: {clip}, head: {head}, architecture: tiny-stand-in}}"]
    works = work_of(load_recipe(RECIPE, [*small_run.settings, *settings]))
    assert [w.step for w in works if w.subject == "photographs"] == ["download", "clarity", "embed", "aesthetic"]
    for work in works:
        if work.subject == "photographs" and work.step in ("embed", "aesthetic"):
            assert not work.is_done()
            work.do(lambda _: None)
            assert work.is_done()
    dataset = Dataset(tmp_path / "data" / "photographs")
    group = next(group for group in dataset.groups() if group.startswith("aesthetic.laion-v1-"))
    rows = dataset.whole_table(group).to_pylist()
    assert rows and all(row["status"] == "ok" and row["score"] is not None for row in rows)
    assert audit(dataset, deep=True).sound


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_random_moments_ends_in_the_same_datasets(small_run: SmallRun, tmp_path: Path) -> None:
    """kill -9 of the flow, again and again; nothing it started may outlive it, and the next run goes on."""
    timings = [json.loads(line) for line in (small_run.run / "timings.jsonl").read_text().splitlines()]
    whole = sum(line["seconds"] for line in timings) + 15  # and Prefect's start
    kills, rounds, draw = 0, 0, random.Random(f"kill/{KILLS}")
    run = SmallRun(tmp_path / "round-0", small_run.port)
    while kills < KILLS:
        process, deadline = run.start(), time.monotonic() + draw.uniform(1, whole)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        kills += process.poll() is None  # one that had ended was not killed
        process.kill()
        process.wait()
        _none_left(run)
        if kills < KILLS and len(run.hashes()) == len(DATASETS) and run.hashes() == small_run.hashes():
            rounds += 1  # all datasets stand: begin anew, so that every kill hits work on them
            run = SmallRun(tmp_path / f"round-{rounds}", small_run.port)
    run.finish()
    assert run.hashes() == small_run.hashes()


def _none_left(run: SmallRun) -> None:
    deadline = time.monotonic() + 150  # Ray's idle agents notice within about a minute
    while run.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not run.processes()


def test_the_demo_recipe_names_every_step_once_per_subject() -> None:
    names = [work.name for work in work_of(load_recipe(RECIPE))]
    assert len(names) == len(set(names))
    assert names[0] == "publish:web" and names[-1] == "report:demo"


def test_datasets_in_s3_have_the_content_hashes_of_local_ones(
    small_run: SmallRun, s3_root: str, tmp_path: Path
) -> None:
    settings = (*SIZES, f"data={s3_root}", f"runs={tmp_path / 'run'}", f"web.port={small_run.port}")
    recipe = load_recipe(RECIPE, settings)
    works = [work for work in work_of(recipe) if work.step in BEFORE_TRAINING]
    for work in works:
        work.do(lambda progress: None)
    assert all(work.is_done() for work in works)
    made = {dataset.name: dataset for dataset in datasets_of(recipe)}
    assert {name: head.content_hash for name, data in made.items() if (head := data.head)} == small_run.hashes()
    for dataset in made.values():
        report = audit(dataset, deep=True, decode=1.0)
        assert report.sound, list(report.lines())
    assert not (tmp_path / "s3:").exists()
