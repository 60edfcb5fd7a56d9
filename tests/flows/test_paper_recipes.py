"""The paper's recipes from files to scores: every source as a miniature of the catalogue, and a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering.aesthetic import load_head
from filtering.embedding import Clip
from filtering.weights import PUBLISHED
from flows.gate import check
from flows.recipe import Recipe, load_recipe
from flows.train import forecast_of
from flows.training_work import execution_of, job_of
from flows.work import datasets_of, work_of
from harmon.training.job import done, stage_folder, training_key
from harmon.training.launch import check_workers
from harmon.training.loop import train
from harmon.training.stage import departures, load_stage
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.loopback import serve
from pipelines.steps import Step, StepRun
from tests.harmon.miniature import TOKENIZER, make_autoencoder, make_job, small_stage, tiny_model
from tests.parts import need_shared
from tests.pipelines import miniatures
from tests.recaption.simulator import MODEL, simulator

RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
ROWS = 12  # sound rows of each source
NAMES = ("paper-0.5b", "paper-1.5b")
SMALL = {"px": 32, "global_batch": 24, "block_rows": 4, "steps": 2}


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_departs_from_no_number_of_the_stages(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    stages = recipe.training.stages
    assert [one.stage for one in stages] == ["stage1", "stage2", "stage3"]
    assert not any(departures(load_stage(one.stage, one.departures), load_stage(one.stage)) for one in stages)
    assert recipe.training.model == name.replace("paper", "harmon")
    used = {source for sources in recipe.set_sources.values() for source in sources}
    assert used == set(recipe.sources)


@pytest.mark.parametrize("name", NAMES)
def test_the_threshold_on_beauty_names_the_scores_that_the_recipes_own_predictor_writes(
    name: str, tmp_path: Path
) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    settings = recipe.aesthetic
    assert settings is not None
    fetched = [PUBLISHED["aesthetic"].name, PUBLISHED["clip"].name]
    assert [Path(settings.head).name, Path(settings.clip).name] == fetched
    head, weights = load_head(need_shared("reference/aesthetic/sac+logos+ava1-l14-linearMSE.pth")), tmp_path / "clip"
    weights.write_bytes(b"weights of CLIP")
    clip = Clip(weights, settings.architecture)
    dataset = Dataset(tmp_path / "scored")
    run = StepRun(dataset, Step("make", 1, {}, ()))
    for shard in run.pending([0]):
        output = run.shard(shard)
        row = dict.fromkeys(SOURCE_SCHEMA.names) | {"key": "0" * 32, "task": "text2image"}
        output.columns("source", pa.Table.from_pylist([row], SOURCE_SCHEMA))
        scores = {"key": ["0" * 32], "score": [7.0], "status": ["ok"], "reason": pa.array([None], pa.string())}
        output.columns(head.group(clip.group), pa.table(scores))
        output.finish(1)
    run.commit()
    (threshold,) = recipe.sets["refined"].named([dataset]).thresholds
    assert (threshold.group, threshold.column, threshold.at_least) == (head.group(clip.group), "score", 6.5)
    assert threshold.group in dataset.groups()


@pytest.mark.parametrize("name", NAMES)
def test_the_gates_are_shut_to_a_model_that_has_learned_nothing(name: str, tmp_path: Path) -> None:
    made = small_stage(steps=4, learning_rate={"decoder": 1e-12}, ratio={"text": 0, "image2text": 0, "text2image": 1})
    folder = train(make_job(tmp_path, made))
    gates = [stage.gate for stage in load_recipe(RECIPES / f"{name}.yaml").training.stages[:2]]
    for gate in gates:
        assert gate is not None
        with pytest.raises(HarmonError, match="is shut"):
            check(gate, folder, "stage1")
        learned = [json.dumps({"step": 5, "loss": {"text2image": 0.5}, "text_sensitivity": 0.1})] * 10
        (tmp_path / "metrics.jsonl").write_text("\n".join(learned) + "\n")
        assert check(gate, tmp_path, "stage1") == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_says_how_it_runs_and_that_fits_on_the_papers_gpus(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.training.autocast == "bfloat16" and recipe.training.save_behind
    for number in range(3):
        told, run = forecast_of(recipe, number), execution_of(recipe, number)
        assert told.layout.fits and told.workers == 32 and told.mix.bf16
        assert run.pack and run.compile
        assert (run.parallel, run.micro_rows) == (told.layout.parallel, told.layout.micro_rows) != ("auto", None)


def test_over_a_range_of_workers_the_layout_is_one_that_the_launch_can_start() -> None:
    smaller = ("training.execution.gpu=A100-40G", "training.launch.workers=16")
    fixed = load_recipe(RECIPES / "paper-1.5b.yaml", smaller)
    assert execution_of(fixed, 2).parallel == forecast_of(fixed, 2).layout.parallel == "hsdp"
    ranged = load_recipe(RECIPES / "paper-1.5b.yaml", (*smaller, "training.launch.workers=[16, 32]"))
    run = execution_of(ranged, 2)
    assert run.parallel == forecast_of(ranged, 2).layout.parallel == "fsdp" and run.shard_workers is None
    check_workers(run, ranged.training.launch)


def test_the_two_recipes_differ_in_the_model_alone() -> None:
    small, large = (load_recipe(RECIPES / f"{name}.yaml").model_dump() for name in NAMES)
    own = ("name", "runs")
    assert {key for key in small if small[key] != large[key]} == {*own, "training"}
    differing = {key for key in small["training"] if small["training"][key] != large["training"][key]}
    assert differing == {"model", "autoencoder", "weights", "tokenizer"}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files of every source as it is published, in a folder each, all with pictures of its own: equal ones would count
    once. Those of links are served meanwhile.
    """
    folder, patch, drawn = tmp_path_factory.mktemp("native"), pytest.MonkeyPatch(), miniatures.picture
    patch.setattr(miniatures, "GOOD", ROWS)
    (folder / "web").mkdir()
    with serve(folder / "web", 0) as address:
        for place, name in enumerate(load_recipe(RECIPES / "paper-0.5b.yaml").sources):
            patch.setattr(miniatures, "picture", lambda n, kind="JPEG", first=19 * place: drawn(first + n, kind))
            if name in miniatures.WITH_IMAGES:
                miniatures.WITH_IMAGES[name](folder / name)
            else:
                miniatures.web(folder / "web" / name)
                miniatures.WITH_LINKS[name](folder / name, f"{address}/{name}")
        urls = [f"{address}/laion-aesthetics/{number}.jpg" for number in range(ROWS)]
        captions = [f"a hill, {number}" for number in range(ROWS)]
        _table(folder / "laion6m-recap" / "part.parquet", url=urls, re_caption=captions)
        yield folder
    patch.undo()


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_the_recipe_runs_from_published_files_to_scores(name: str, native: Path, tmp_path: Path) -> None:
    with simulator() as server:
        recipe = load_recipe(RECIPES / f"{name}.yaml", settings(native, tmp_path, server.address))
        works = work_of(recipe)
        for work in works:
            work.do(lambda progress: None)
    assert all(work.is_done() for work in works)
    assert all(dataset.head is not None for dataset in datasets_of(recipe))
    for number in range(3):
        job = job_of(recipe, number)
        folder, key = stage_folder(job, training_key(job)), training_key(job)
        record = done(folder, key)
        assert record is not None and record["steps"] == 2
        assert (folder / "gate.json").exists() == (number < 2)
    assert "generation" in json.loads((recipe.run_folder / "evaluation" / "scores.json").read_text())
    assert (recipe.run_folder / "report.html").exists()


def settings(native: Path, folder: Path, rewriter: str) -> list[str]:
    """What makes the recipe small: sources from `native`, a server that rewrites, a tiny model, two steps a stage."""
    recipe: Recipe = load_recipe(RECIPES / "paper-0.5b.yaml")
    autoencoder, model = make_autoencoder(folder / "patch_latent.safetensors"), folder / "model.yaml"
    model.write_text(tiny_model().model_dump_json())
    made = [f"data={folder / 'data'}", f"runs={folder / 'run'}", "aesthetic=null"]
    for name in recipe.sources:
        made += [f"files.{name}.folder={native / name}", f"sources.{name}.engine=native"]
        made += [f"sources.{name}.allow=[127.0.0.1/32]", f"sources.{name}.rows_per_shard=16"]
        made += [f"terms.{name}={{by: a test, what: terms of a miniature, when: 2026-01-01}}"]
    made += [f"files.laion6m-recap.folder={native / 'laion6m-recap'}"]
    made += ["terms.laion6m-recap={by: a test, what: terms of a miniature, when: 2026-01-01}"]
    for name in recipe.sets:
        made += [f"sets.{name}.geometry.min_side=16", f"sets.{name}.thresholds=[]", f"sets.{name}.rows_per_shard=16"]
    made += [f"recaption.endpoints=[{rewriter}]", f"recaption.model={TOKENIZER}", f"recaption.model_name={MODEL}"]
    made += [f"training.model={model}", f"training.autoencoder={autoencoder}", "training.weights=[]"]
    made += [f"training.tokenizer={TOKENIZER}", "training.launch={workers: 0}", "training.device=cpu"]
    made += ["training.execution.compile=false"]  # of miniatures it would take most of the time
    for stage in range(3):
        made += [f"training.stages.{stage}.departures={json.dumps(SMALL)}"]
    made += [f"training.stages.{stage}.gate.at_most=1000" for stage in range(2)]
    made += ["evaluation={held_out: 2, seen: 2, two: 2, asked: 1, sampling: {ar_steps: 2, diffusion_steps: '2'}}"]
    return made


def _table(path: Path, **columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
