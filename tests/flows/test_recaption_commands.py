"""`harmon recaption` and `harmon plan` as a person runs them, against a simulated server."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flows.caption_groups import caption_groups_of
from flows.cli import main
from flows.recipe import load_recipe
from flows.training_work import _entries
from flows.work import selection_of, work_of
from pipelines.dataset import Dataset
from recaption.engines import EngineSettings
from recaption.estimate import Counts, Rates, estimate
from tests.parts import need
from tests.recaption.captioned import DENSE, QWEN, ROWS, SHARDS, write_scenes
from tests.recaption.simulator import MODEL, Simulator, completion, rewritten, simulator


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recaption", *arguments])


def ask(server: Simulator, dataset: Dataset, *arguments: str) -> dict[str, Any]:
    """What a run against the server prints as JSON, with the requests that it made."""
    before = server.seen.requests
    done = run(str(dataset.root), "--model", MODEL, "--endpoint", server.address, "--json", *arguments)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said | {"requests": server.seen.requests - before}


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return write_scenes(tmp_path / "scenes")


def test_rows_are_captioned_and_a_second_run_asks_nothing(scenes: Dataset) -> None:
    with simulator() as server:
        first = ask(server, scenes, "--prompt", "rewrite-v1")
        again = ask(server, scenes, "--prompt", "rewrite-v1")
        flagged = ask(server, scenes, "--prompt", "rewrite-v1", "--only", "flagged")
    assert (first["rows"], first["captions"], first["requests"]) == (SHARDS * ROWS, DENSE, DENSE)
    assert (again["requests"], again["group"]) == (0, first["group"])
    assert flagged["requests"] == 0
    assert [group for group in scenes.groups() if group.endswith("telemetry")] == [f"{first['group']}.telemetry"]


def test_a_prompt_mended_for_a_few_rows_asks_about_those_alone(scenes: Dataset, tmp_path: Path) -> None:
    def behave(message: str) -> Any:
        return completion("I am sorry." if "triangle" in message and "plainly" not in message else rewritten(message))

    text = Path("recaption/prompts/rewrite-v1.yaml").read_text()
    text = text.replace("version: rewrite-v1", "version: rewrite-v2").replace("Ensure the", "Speak plainly. Ensure the")
    (tmp_path / "rewrite-v2.yaml").write_text(text)
    with simulator(behave) as server:
        first = ask(server, scenes, "--prompt", "rewrite-v1")
        mended = ask(server, scenes, "--prompt", str(tmp_path / "rewrite-v2.yaml"), "--only", "failed")
    assert 0 < mended["requests"] == first["failed"]["refusal"] < DENSE
    assert mended["captions"] == DENSE


def test_a_dry_run_keeps_nothing_and_says_what_all_would_take(scenes: Dataset) -> None:
    before = scenes.head
    with simulator() as server:
        told = ask(server, scenes, "--prompt", "rewrite-v1", "--dry-run", "--gpus", "8", "--gpu-price", "2")
    assert (told["rows"], told["chosen"], told["reused"]) == (SHARDS * ROWS, DENSE, 0)
    assert told["requests"] == DENSE  # all of so small a dataset are the sample
    assert (told["tokens_in"], told["tokens_out"]) == (3 * DENSE, 2 * DENSE)
    assert told["gpu_hours"] == pytest.approx(8 * told["seconds"] / 3600)
    assert told["cost"] == pytest.approx(2 * told["gpu_hours"])
    assert scenes.newest() == before


def test_where_limit_and_sample_narrow_what_is_asked(scenes: Dataset) -> None:
    with simulator() as server:
        some = ask(server, scenes, "--prompt", "rewrite-v1", "--where", "caption LIKE '%circle%'", "--limit", "3")
        rest = ask(server, scenes, "--prompt", "rewrite-v1", "--sample", "50%")
    assert some["requests"] == some["captions"] == 3
    assert 0 < rest["requests"] < DENSE - 3


def test_another_dataset_answers_identical_work(scenes: Dataset, tmp_path: Path) -> None:
    copy = write_scenes(tmp_path / "copy", {4: "Two dogs run over a wide field."})
    with simulator() as server:
        ask(server, scenes, "--prompt", "rewrite-v1")
        said = ask(server, copy, "--prompt", "rewrite-v1", "--reuse", str(scenes.root))
    assert (said["requests"], said["captions"]) == (1, DENSE)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--prompt", "rewrite-v1"], "--model", 2),
        (["--prompt", "rewrite-v1", "--model", "nowhere"], "is no folder", 2),
        (["--prompt", "rewrite-v9", "--model", "m", "--endpoint", "http://127.0.0.1:9"], "known versions", 2),
        (["--prompt", "rewrite-v1", "--model", "m", "--endpoint", "http://127.0.0.1:9"], "No vLLM server answers", 3),
        (["--prompt", "rewrite-v1", "--model", "m", "--endpoint", "x", "--sample", "2"], "--sample 2", 2),
        (["--prompt", "rewrite-v1", "--model", "m", "--endpoint", "x", "--only", "failed"], "no earlier captions", 2),
        (["--prompt", "rewrite-v1", "--model", "m", "--endpoint", "x", "--where", "nosuch = 1"], "nosuch", 2),
        (["--prompt", "rewrite-v1", "--model", "m", "--endpoint", "x", "--engine", "transformers"], "belongs to", 2),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(
    scenes: Dataset, arguments: list[str], words: str, code: int
) -> None:
    done = run(str(scenes.root), *arguments)
    assert (done.exit_code, words in done.stderr) == (code, True), done.output
    assert done.stderr.count("\n") == 1


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(str(tmp_path / "none"), "--prompt", "rewrite-v1", "--model", "m", "--endpoint", "x")
    assert (done.exit_code, "There is no dataset" in done.stderr) == (2, True)


def test_an_estimate_is_the_sample_times_the_rest() -> None:
    counts = Counts(rows=2_000_000, chosen=1_500_000, reused=500_000, requests=1_000_000, sample=())
    rates = Rates(200, tokens_in=250.0, tokens_out=40.0, seconds=0.01, draws=1.1, passed=0.9, engine="vllm")
    told = estimate(counts, rates, gpus=8, gpu_hour_price=1.5)
    assert (told.requests, told.tokens_in, told.tokens_out) == (1_100_000, 275_000_000, 44_000_000)
    assert told.gpu_hours == pytest.approx(8 * 11_000 / 3600)
    assert told.cost == pytest.approx(1.5 * told.gpu_hours)
    assert "1,100,000 requests" in "\n".join(told.lines())


def test_a_model_on_the_cpu_costs_no_gpu_hours(scenes: Dataset) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    asked = ["--prompt", "rewrite-v1", "--model", str(QWEN), "--dry-run", "--limit", "4", "--gpu-price", "2"]
    told = json.loads(run(str(scenes.root), *asked, "--json").stdout)
    assert told["seconds"] > 0
    assert (told["requests"], told["gpu_hours"], told["cost"]) == (4, 0, 0)
    assert "no GPU-hours" in run(str(scenes.root), *asked).stdout


@pytest.mark.parametrize(
    ("settings", "told", "gpus"),
    [
        (EngineSettings(), None, 0),
        (EngineSettings(engine="vllm", gpus=8), None, 8),
        (EngineSettings(engine="vllm-offline", gpus=2, actors=4), None, 8),
        (EngineSettings(engine="vllm", endpoints=("http://a:8000",)), None, 1),
        (EngineSettings(engine="vllm", endpoints=("http://a:8000",)), 8.0, 8),
    ],
)
def test_gpus_are_those_of_the_engine(settings: EngineSettings, told: float | None, gpus: float) -> None:
    assert settings.gpus_used(told) == gpus


def test_the_deadline_of_a_reply_can_be_set(scenes: Dataset) -> None:
    with simulator(lambda message: completion(rewritten(message), after=0.5)) as server:
        arguments = ["--prompt", "rewrite-v1", "--limit", "2", "--deadline", "0.2"]
        done = run(str(scenes.root), "--model", MODEL, "--endpoint", server.address, "--json", *arguments)
    assert json.loads(done.stdout)["failed"]["timed_out"] == 2


def test_a_recipes_plan_sums_what_can_be_known(tmp_path: Path) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    write_scenes(tmp_path / "data" / "scenes")
    with simulator(lambda message: completion(rewritten(message))) as server:
        settings = [f"data={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}", "recaption.engine=vllm"]
        settings += [f"recaption.endpoints=[{server.address}]", f"recaption.served_model={MODEL}"]
        arguments = ["plan", "flows/recipes/demo.yaml", *(part for one in settings for part in ("--set", one))]
        done = CliRunner().invoke(main, [*arguments, "--ask", "--gpu-price", "2"])
    assert done.exit_code == 0, done.output
    assert f"{DENSE} requests" in done.stdout
    assert f"sum of captioning: {DENSE} requests" in done.stdout


def test_a_recipe_may_ask_several_prompts_and_mix_their_captions_by_share(tmp_path: Path) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    scenes = write_scenes(tmp_path / "data" / "scenes")
    entries = "[{set: corpus, rows: image2text, text: rewrite, weight: 3}"
    entries += (
        ", {set: corpus, rows: image2text, text: caption-short-v1}, {set: corpus, rows: text2image, text: caption}]"
    )
    settings = [f"data={tmp_path / 'data'}", f"runs={tmp_path / 'runs'}", "recaption.also=[caption-short-v1]"]
    recipe = load_recipe(Path("flows/recipes/demo.yaml"), [*settings, f"training.stages.1.text2image={entries}"])
    works = [work for work in work_of(recipe) if work.step == "rewrite"]
    assert [work.subject for work in works] == ["scenes", "scenes@caption-short-v1"]
    assert not works[0].is_done()
    works[0].do(lambda progress: None)
    assert works[0].is_done()
    groups = caption_groups_of(recipe)
    assert groups["rewrite"] == groups["rewrite-v1"] in scenes.groups()
    assert set(selection_of(recipe, "corpus").carry) >= {groups["rewrite-v1"], groups["caption-short-v1"]}
    texts = scenes.whole_table(groups["rewrite"]).column("text").to_pylist()
    assert sum(text is not None for text in texts) > DENSE // 2
    shares = [(entry.text, entry.weight) for entry in _entries(recipe, recipe.training.stages[1], "text2image")]
    assert shares == [(groups["rewrite"], 3), (groups["caption-short-v1"], 1), ("caption", 1)]
