"""`harmon plan`: every step with what it rests on, and what a run that was measured teaches."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main
from flows.plan.actual import actual
from flows.plan.paper import implied
from flows.plan.path import critical_path
from flows.plan.plan import Means, Plan, plan
from flows.plan.prices import SHIPPED, read_prices
from flows.plan.rates import SHIPPED as SHIPPED_RATES
from flows.plan.rates import read_learned
from flows.plan.replay import replay
from flows.plan.simulation import Cluster, Training
from flows.plan.told import lines, to_json
from flows.recipe import Recipe, load_recipe
from flows.work import work_of
from pipelines.errors import ConfigurationError
from tests.flows.small_run import RECIPE, SmallRun

RECIPES = RECIPE.parent
# seconds of demo-long as RUN/timings.jsonl of 2026-11-22 has them, the last time each step ended: two cores, beside
# other work (docs/proof/demo-long.log); infra/rates.json was learned from another run, of the recipe demo
DEMO_LONG = {
    "publish:web": 32.80, "download:photographs": 2.50, "download:scenes": 23.23, "rewrite:scenes": 119.55,
    "clarity:photographs": 0.24, "clarity:scenes": 14.88, "select:corpus": 1.65, "select:refined": 1.59,
    "latents:corpus@64px": 6.45, "latents:refined@128px": 5.37, "train:stage1": 227.23, "train:stage2": 3265.70,
    "train:stage3": 1316.99, "curve:demo-long": 228.89, "evaluate:demo-long": 80.61, "audit:datasets": 1.12,
    "report:demo-long": 2.24,
}  # fmt: skip


def elsewhere(name: str, folder: Path, *settings: str) -> Recipe:
    """A recipe of which nothing stands."""
    return load_recipe(RECIPES / f"{name}.yaml", [f"data={folder}/data", f"runs={folder}/runs", *settings])


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("paper")
    return plan(elsewhere("paper-0.5b", folder), Means(learned=folder / "none.json"))


@pytest.mark.parametrize("name", ["demo", "demo-long"])
def test_the_plan_has_every_step_of_the_run_in_its_order(name: str, tmp_path: Path) -> None:
    recipe = elsewhere(name, tmp_path)
    told = plan(recipe, Means(learned=tmp_path / "none.json"))
    assert [step.name for step in told.steps] == [work.name for work in work_of(recipe)]
    for number, step in enumerate(told.steps):
        assert set(step.draft.after) <= {one.name for one in told.steps[:number]}
        assert (step.draft.after == ()) == (step.name == "publish:web")


def test_rates_of_one_demo_predict_a_longer_one_within_30_percent(tmp_path: Path) -> None:
    """Of steps that take over a minute each, and of the sum; the fixed part of short ones is not told apart."""
    assert {one.recipe for one in read_learned(SHIPPED_RATES).observations} == {"demo"}
    told = plan(elsewhere("demo-long", tmp_path), Means(learned=tmp_path / "none.json"), look=False)
    assert told.unknown == [] and all(step.rate and step.rate.learned for step in told.steps)
    assert told.seconds == pytest.approx(sum(DEMO_LONG.values()), rel=0.3)
    for name, seconds in DEMO_LONG.items():
        if seconds > 60 and not name.startswith(("curve", "evaluate")):
            assert next(step.seconds for step in told.steps if step.name == name) == pytest.approx(seconds, rel=0.3)


def test_the_papers_utilisation_is_derived_and_told_as_derived(paper: Plan) -> None:
    assert [(one.model, f"{one.utilisation:.1%}", one.gpu_hours) for one in implied()] == [
        ("harmon-0.5b", "17.7%", 3072.0),
        ("harmon-1.5b", "30.6%", 6144.0),
    ]
    text = "\n".join(lines(paper))
    assert " 17.7%: " in text and " 30.6%: " in text and text.count("derived for harmon-") == 2
    assert paper.gpu_hours_at(0.2) == pytest.approx(2 * paper.gpu_hours_at(0.4))


def test_no_number_of_a_plan_stands_without_what_it_rests_on(paper: Plan) -> None:
    text = list(lines(paper))
    for step in paper.steps:
        assert step.rate is not None and step.rate.source and step.draft.basis
        at = next(number for number, line in enumerate(text) if line.startswith(f"{step.name}: "))
        assert step.draft.basis in text[at + 1] and step.rate.source in text[at + 2]
    for name in paper.rented:
        price = paper.prices.instances[name]
        assert any(price.source in line and str(price.date) in line for line in text)
    assert any("150 kB a picture (assumed), 80% of links alive (assumed)" in line for line in text)


def test_money_is_hours_times_the_price_of_what_is_rented(paper: Plan) -> None:
    by = {step.name: step for step in paper.steps}
    train, fetch = by["train:stage1"], by["download:pd12m"]
    assert train.gpu and train.workers == 32 and train.usd == pytest.approx(train.gpu_hours * 27.45 / 8)
    assert not fetch.gpu and fetch.gpu_hours == 0 and fetch.usd == pytest.approx((fetch.seconds or 0) / 3600 * 1.36)
    assert paper.usd == pytest.approx(sum(step.usd for step in paper.steps))
    json.dumps(to_json(paper))


def test_more_gpus_take_less_time_and_the_same_gpu_hours(tmp_path: Path) -> None:
    recipe, none = elsewhere("paper-0.5b", tmp_path), tmp_path / "none.json"
    few, many = (plan(recipe, Means(gpus=gpus, learned=none, mfu=0.2)) for gpus in (16, 64))
    one, other = (next(step for step in told.steps if step.name == "train:stage2") for told in (few, many))
    assert one.seconds == pytest.approx(4 * (other.seconds or 0)) and one.gpu_hours == pytest.approx(other.gpu_hours)
    assert one.rate is not None and "20.0% of peak: as you say" in one.rate.source


def test_a_step_whose_rate_nobody_knows_is_named_and_not_taken_for_nothing(tmp_path: Path) -> None:
    clip = "{clip: harmon/parts/none.safetensors, head: harmon/parts/none.pth}"
    told = plan(elsewhere("demo", tmp_path, f"aesthetic={clip}"), Means(learned=tmp_path / "none.json"))
    assert "embed:scenes" in told.unknown and "train:stage1" not in told.unknown
    assert "without embed:photographs" in "\n".join(lines(told))
    with pytest.raises(ConfigurationError, match="No rate is known of embed:photographs"):
        replay(told, None, Cluster(1, None), Training(600, 0, 0))


def test_the_critical_path_is_the_longest_way() -> None:
    seconds = {"a": 1.0, "b": 5.0, "c": 2.0, "d": 3.0, "e": 1.0}
    after = {"c": ("a",), "d": ("a", "b"), "e": ("c", "d", "done before")}
    assert critical_path(seconds, after) == (["b", "d", "e"], 9.0)
    assert critical_path({}, {}) == ([], 0.0)


def test_prices_are_checked_and_an_unknown_instance_is_refused_with_the_nearest(tmp_path: Path) -> None:
    prices = read_prices()
    assert all(one.source and one.date for one in (*prices.instances.values(), *prices.storage.values()))
    with pytest.raises(ConfigurationError, match=r"did you mean 'p4de\.24xlarge'"):
        prices.instance("p4de.24large", gpus=True)
    with pytest.raises(ConfigurationError, match="has no GPU"):
        prices.instance("c6i.8xlarge", gpus=True)
    wrong = tmp_path / "prices.yaml"
    wrong.write_text(SHIPPED.read_text().replace("cpu_instance: c6i.8xlarge", "cpu_instance: c6i.8xlarger"))
    with pytest.raises(ConfigurationError, match=r"did you mean 'c6i\.8xlarge'"):
        read_prices(wrong)


def test_stated_rows_go_before_the_catalogues(tmp_path: Path) -> None:
    recipe, none = elsewhere("paper-0.5b", tmp_path), tmp_path / "none.json"
    told = plan(recipe, Means(rows={"pd12m": 1000}, learned=none))
    step = next(step for step in told.steps if step.name == "download:pd12m")
    assert step.draft.samples == 1000 and "1,000 rows as you state" in step.draft.basis
    with pytest.raises(ConfigurationError, match="did you mean 'pd12m'"):
        plan(recipe, Means(rows={"pd12": 1000}, learned=none))


def test_a_recipe_replayed_without_failures_takes_what_its_plan_says(paper: Plan) -> None:
    told = replay(paper, None, Cluster(4, None), Training(1e9, 0, 0))
    wall = {name: spent.wall for name, spent in told.steps}
    for step in paper.steps:
        if step.draft.kind == "train":  # 4 nodes of 8 GPUs are the recipe's 32
            assert wall[step.name] == pytest.approx(step.seconds)
        if step.draft.kind == "embed":
            assert (step.seconds or 0) <= wall[step.name] * 1.001 <= 1.01 * (step.seconds or 0) + 60
    larger = replay(paper, 1_000_000_000, Cluster(16, 500.0), Training(1800, 5, 300))
    assert larger.whole.failures > 0 and "sum" in "\n".join(larger.lines())
    assert sum(name.startswith("download") for name, _ in larger.steps) == 13


@pytest.mark.slow
def test_a_run_teaches_its_rates_and_the_next_plan_reads_them(small_run: SmallRun, tmp_path: Path) -> None:
    rates, copy = tmp_path / "rates.json", tmp_path / "run"
    shutil.copytree(small_run.run, copy, ignore=shutil.ignore_patterns("prefect", "checkpoints", "logs"))
    settings = [part for one in (*small_run.settings, f"runs={copy}") for part in ("--set", one)]
    command = ["plan", str(RECIPE), *settings, "--rates", str(rates)]
    first = CliRunner().invoke(main, [*command, "--actual", str(copy), "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    works = [work.name for work in work_of(load_recipe(RECIPE, small_run.settings))]
    assert [one["step"] for one in told["steps"]] == works and told["recorded_recipe"]
    assert all(one["measured"] and one["estimate"] for one in told["steps"])
    recipe = load_recipe(RECIPE, [*small_run.settings, f"runs={copy}"])
    again = actual(recipe, copy, Means(learned=rates))
    assert again.estimate == pytest.approx(again.measured, rel=1e-6)  # the same run, by its own rates
    assert len(read_learned(rates).observations) == len(works)  # learned anew, not twice
    resumed = {"step": "train", "subject": "stage1", "started": "2026-11-22T00:00:00+00:00", "seconds": 0.001}
    with (copy / "timings.jsonl").open("a") as file:
        file.write(json.dumps(resumed) + "\n")
    whole = next(one for one in actual(recipe, copy, Means(learned=rates)).steps if one.step == "train:stage1")
    assert whole.measured and whole.measured > 0.01  # the lines of metrics know of what came before


@pytest.mark.slow
def test_what_is_done_is_told_and_not_summed(small_run: SmallRun, tmp_path: Path) -> None:
    done = plan(load_recipe(RECIPE, small_run.settings), Means(learned=tmp_path / "none.json"))
    assert done.left == [] and done.seconds == 0 and done.critical_path() == ([], 0.0)
    assert f"({len(done.steps)} steps are done)" in "\n".join(lines(done))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["plan", str(RECIPE), "--actual", str(tmp_path), "--rates", str(tmp_path / "r")])
    assert answer.exit_code == 2 and "name the folder of a run" in answer.stderr


def test_the_command_simulates_at_a_stated_number_of_images(tmp_path: Path) -> None:
    command = [
        "simulate",
        str(RECIPES / "paper-0.5b.yaml"),
        "--set",
        f"data={tmp_path}",
        "--rates",
        str(tmp_path / "r"),
    ]
    told = CliRunner().invoke(main, [*command, "--nodes", "8", "--images", "50M", "--mtbf", "300"])
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("paper-0.5b at 50,000,000 images on 8 nodes, seed 0")
    wrong = CliRunner().invoke(main, [*command, "--nodes", "8", "--images", "many"])
    assert wrong.exit_code == 2 and "such as 50M or 1B" in wrong.stderr
