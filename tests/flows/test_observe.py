"""What a run shows of itself: metrics read from what it left, the dashboards' queries, JSON logs, traces."""

import json
import logging
import re
import threading
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from flows.cli import main
from flows.observe.data_metrics import DatasetReceipts
from flows.observe.exporter import registry_of, served
from flows.observe.logs import JsonLines, wants_json
from flows.observe.traces import tracing
from flows.recipe import Recipe, load_recipe
from harmon.training.job import metrics_lines
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.log_facts import facts_now, log_facts
from pipelines.steps import Step, StepRun
from tests.flows.small_run import DATASETS, RECIPE, ROOT, STAGES, SmallRun

DASHBOARDS = sorted((ROOT / "infra" / "grafana").glob("*.json"))
WORDS = frozenset({"sum", "min", "rate", "deriv", "time", "by"})
Sample = dict[str, str]


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Every metric that the exporter can tell, with its labels, whatever of the recipe stands."""
    found = {}
    for family in registry_of(load_recipe(RECIPE)).collect():
        name = f"{family.name}_total" if isinstance(family, CounterMetricFamily) else family.name
        found[name] = set(family._labelnames)  # type: ignore[attr-defined]  # no sample, no other way to know them
    return found


def recipe_of(run: SmallRun) -> Recipe:
    return load_recipe(RECIPE, run.settings)


def queries(dashboard: Path) -> list[str]:
    board = json.loads(dashboard.read_text())
    variables = [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]] + variables


def test_there_is_a_dashboard_of_data_and_one_of_training() -> None:
    assert [one.stem for one in DASHBOARDS] == ["data", "training"]
    for dashboard in DASHBOARDS:
        board = json.loads(dashboard.read_text())
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) and board["uid"]
        assert all(len(panel["targets"]) and panel["title"] for panel in board["panels"])


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda one: one.stem)
def test_every_query_asks_for_metrics_and_labels_that_are_exported(
    dashboard: Path, exported: dict[str, set[str]]
) -> None:
    """Names and labels as the code has them, so that neither side changes alone."""
    for query in queries(dashboard):
        names = set(re.findall(r"\bharmon_\w+", query))
        assert names and names <= exported.keys(), query
        labels = set()
        for name, chosen in re.findall(r"\b(harmon_\w+)\{([^}]*)\}", query):
            filters = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", chosen))
            assert filters <= exported[name], query
            labels |= filters
        shared = {one.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for one in group.split(",")}
        shared |= set(re.findall(r"label_values\(\w+, (\w+)\)", query))
        assert shared <= set.intersection(*(exported[name] for name in names)), query
        labels |= shared
        asked = set(re.findall(r"\b([a-z_]+)\b", re.sub(r'"[^"]*"|\[[^]]*\]', "", query)))
        assert asked <= names | labels | WORDS | {"label_values"}, query


def test_every_exported_metric_stands_in_a_dashboard(exported: dict[str, set[str]]) -> None:
    asked = {name for one in DASHBOARDS for query in queries(one) for name in re.findall(r"\bharmon_\w+", query)}
    assert asked == exported.keys()


@pytest.mark.slow
def test_the_metrics_of_a_run_are_those_of_its_manifests_and_lines(small_run: SmallRun, tmp_path: Path) -> None:
    recipe, file = recipe_of(small_run), tmp_path / "harmon.prom"
    settings = [part for one in small_run.settings for part in ("--set", one)]
    written = CliRunner().invoke(main, ["metrics", str(RECIPE), "--textfile", str(file), *settings])
    assert written.exit_code == 0, written.output
    samples = [one for family in text_string_to_metric_families(file.read_text()) for one in family.samples]

    def value(name: str, **labels: str) -> float:
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    for name in DATASETS:
        for commit in Dataset(small_run.data / name).commits():
            at = {"recipe": "demo", "dataset": name, "step": commit.step, "key": commit.step_key[:8]}
            assert value("harmon_step_rows_total", **at, direction="in") == commit.rows_in
            assert value("harmon_step_rows_total", **at, direction="out") == commit.rows_out
            assert value("harmon_step_committed", **at) == 1 <= value("harmon_step_shards_total", **at)
            mine = [one for one in samples if one.name == "harmon_step_rows_left_total"]
            mine = [one for one in mine if at.items() <= one.labels.items()]
            left = {(one.labels["how"], one.labels["reason"]): one.value for one in mine}
            told = {("rejected", why): n for why, n in commit.rejected.items()}
            assert left == told | {("failed", why): n for why, n in commit.failed.items()}
            assert value("harmon_step_bytes_total", **at) > 0
    folders = sorted((recipe.run_folder / "train").iterdir())
    assert len(folders) == STAGES
    for folder in folders:
        line, at = metrics_lines(folder)[-1], {"run": folder.name}
        assert value("harmon_train_step", **at) == value("harmon_train_steps_planned", **at) == 4
        assert value("harmon_train_data_wait_share", **at) == line["data_share"]
        for task, loss in line["loss"].items():
            assert value("harmon_train_loss", **at, task=task) == loss
    assert value("harmon_run_step_seconds", step="train", subject="stage2") > 0


def test_a_finished_shard_counts_once_and_as_soon_as_its_receipt_stands(tmp_path: Path) -> None:
    dataset, receipts = Dataset(tmp_path / "data"), DatasetReceipts(Dataset(tmp_path / "data"))
    receipts.look()
    assert receipts.steps == {}
    step = Step("download", 1, {})
    for shard in range(3):
        write_shard(dataset, step, shard)
        for _ in range(2):
            receipts.look()
        (done,) = receipts.steps.values()
        assert (done.shards, done.rows_in, done.rows_out) == (shard + 1, 2 * (shard + 1), shard + 1)
        assert done.left == {("rejected", "dead_link"): shard + 1}


def write_shard(dataset: Dataset, step: Step, shard: int) -> None:
    import pyarrow as pa

    from pipelines.canonical import sample_key
    from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA

    key, gone = (sample_key("own", f"{shard}-{name}") for name in ("stays", "goes"))
    row = dict.fromkeys(SOURCE_SCHEMA.names) | {"key": key, "source": "own", "row_id": f"{shard}", "task": "text"}
    lost = dict.fromkeys(REJECT_SCHEMA.names) | {"key": gone, "source": "own", "row_id": "x", "reason": "dead_link"}
    output = StepRun(dataset, step).shard(shard)
    output.columns("source", pa.Table.from_pylist([row], SOURCE_SCHEMA))
    output.rejects(pa.Table.from_pylist([lost], REJECT_SCHEMA))
    output.finish(rows_in=2)


def test_prometheus_scrapes_a_port_and_a_taken_one_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, [f"data={tmp_path}/data", f"runs={tmp_path}/runs"])
    with served(recipe, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"# TYPE harmon_step_rows_total counter" in answer.read()
        with pytest.raises(HarmonError, match="name another port"), served(recipe, port):
            pass


@pytest.mark.slow
def test_a_runs_log_is_json_that_says_run_step_and_message(small_run: SmallRun) -> None:
    told = [json.loads(line) for line in small_run.log().splitlines() if line.startswith('{"time"')]
    done = [one for one in told if re.match(r"clarity:scenes: \d+ of \d+ shards", one["message"])]
    assert done and all((one["run"], one["step"], one["level"]) == ("demo", "clarity:scenes", "info") for one in done)


@pytest.mark.slow
def test_a_run_is_one_trace_with_a_span_a_step(small_run: SmallRun) -> None:
    spans = [json.loads(line) for line in small_run.traces.read_text().splitlines()]
    (run, *others) = [one for one in spans if one["name"] == "run demo"]
    steps = [one for one in spans if one["parent_id"] == run["context"]["span_id"]]
    assert {one["name"] for one in steps} >= {"download:scenes", "train:stage1", "report:demo"}
    clarity = next(one for one in steps if one["name"] == "clarity:scenes")
    assert clarity["attributes"] == {"step": "clarity", "subject": "scenes"}
    assert clarity["events"][-1]["attributes"]["rows"] == 180
    assert all(one["name"] == "run demo" for one in others)  # later runs of the same folder


def test_a_line_says_the_shard_of_the_thread_that_writes_it(tmp_path: Path) -> None:
    dataset, step, seen = Dataset(tmp_path), Step("download", 1, {}), {}

    def work(shard: int) -> None:
        output = StepRun(dataset, step).shard(shard)
        record = logging.makeLogRecord({"name": "x", "levelno": 20, "levelname": "INFO", "msg": "half"})
        seen[shard] = json.loads(JsonLines().format(record))
        del output

    with log_facts(run="demo", step="download:own"):
        threads = [threading.Thread(target=work, args=(shard,)) for shard in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        write_shard(dataset, step, 2)
        assert facts_now() == {"run": "demo", "step": "download:own"}  # the shard is done
    for shard in range(2):
        assert (seen[shard]["run"], seen[shard]["step"], seen[shard]["shard"]) == ("demo", "download:own", shard)
    assert facts_now() == {}


def test_an_error_is_a_field_of_its_line() -> None:
    try:
        raise ValueError("no\nmore")
    except ValueError as error:
        kept = {"name": "x", "levelname": "ERROR", "msg": "it %s", "args": ("broke",)}
        record = logging.makeLogRecord(kept | {"exc_info": (type(error), error, error.__traceback__)})
    line = JsonLines().format(record)
    told = json.loads(line)
    assert "\n" not in line and told["message"] == "it broke" and told["error"].endswith("ValueError: no\nmore")


def test_an_unknown_kind_of_log_or_trace_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARMON_LOG", "xml")
    with pytest.raises(ConfigurationError, match="say json or text"):
        wants_json()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARMON_TRACES", str(tmp_path / "file" / "traces"))
    with pytest.raises(ConfigurationError, match="name a file"), tracing():
        pass
    monkeypatch.setenv("HARMON_TRACES", "otlp")
    with pytest.raises(ConfigurationError, match="needs the package opentelemetry-exporter-otlp-proto-http"), tracing():
        pass


def test_without_being_asked_for_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARMON_TRACES", raising=False)
    with tracing() as tracer, tracer.span("x") as span:
        span.event("y", rows=1)
