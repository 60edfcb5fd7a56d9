"""Gates between stages: what the metrics say, and a person's word."""

import json
import threading
import time
from pathlib import Path

import pytest

from flows.gate import Gate, measured, pass_gate, passed
from flows.recipe import load_recipe
from flows.run import _as_flow
from flows.work_item import Work
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import parse
from tests.flows.small_run import RECIPE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        {"step": step, "loss": {"text2image": 2.0 - step / 10}, "text_sensitivity": step / 10} for step in range(1, 6)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_mean_of_the_last_lines_is_held_against_the_bound(folder: Path) -> None:
    gate = Gate(metric="text_sensitivity", at_least=0.45, lines=2)
    assert measured(gate, folder) == pytest.approx(0.45)
    pass_gate(gate, folder, "stage1", "key")
    assert passed(gate, folder, "key")
    assert not passed(gate, folder, "another key")
    assert not passed(gate.model_copy(update={"at_least": 0.4}), folder, "key")


def test_a_shut_gate_says_what_it_asks(folder: Path) -> None:
    gate = Gate(metric="loss/text2image", at_most=1.0, lines=1)
    with pytest.raises(HarmonError, match=r"behind stage1 is shut: loss/text2image is 1\.5, and it asks at most 1"):
        pass_gate(gate, folder, "stage1", "key")
    assert not passed(gate, folder, "key")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null"])
@pytest.mark.parametrize("bound", ["at_most", "at_least"])
def test_a_metric_that_is_no_finite_number_shuts_the_gate(folder: Path, value: str, bound: str) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 6, "loss": {{"text2image": {value}}}, "gradient_norm": {value}}}\n')
        file.write('{"step": 7, "loss": {"text2image": 1.0}, "gradient_norm": 1.0}\n')
    for metric in ("loss/text2image", "gradient_norm"):
        gate = Gate(metric=metric, **{bound: 1e9 if bound == "at_most" else -1e9})
        with pytest.raises(HarmonError, match=f"behind stage1 is shut: {metric} is nan"):
            pass_gate(gate, folder, "stage1", "key")
        assert not passed(gate, folder, "key")
        pass_gate(gate.model_copy(update={"lines": 1}), folder, "stage1", "key")


def test_a_bound_of_zero_is_a_bound(folder: Path) -> None:
    with pytest.raises(HarmonError, match="it asks at most 0"):
        pass_gate(Gate(metric="text_sensitivity", at_most=0.0), folder, "stage1", "key")


def test_an_unknown_metric_is_refused_with_the_nearest_one(folder: Path) -> None:
    with pytest.raises(HarmonError, match="did you mean 'loss/text2image'"):
        measured(Gate(metric="loss/text2img", at_most=1.0), folder)


@pytest.mark.parametrize("settings", [{}, {"metric": "loss/text"}, {"at_least": 1.0}, {"metric": "x", "lines": 0}])
def test_a_gate_asks_a_bound_of_a_metric_or_a_person(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        parse(Gate, settings, "the gate")
    assert parse(Gate, {"approval": True}, "the gate").metric is None


def test_a_gate_that_asks_a_person_waits_until_the_flow_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    recipe = load_recipe(RECIPE, [f"runs={tmp_path / 'run'}", f"data={tmp_path / 'data'}"])
    events: list[str] = []
    gate = Work(
        "train", "stage1 gate", lambda: False, lambda _: events.append("passed"), ask=lambda: events.append("asked")
    )
    after = Work("train", "stage2", lambda: False, lambda _: events.append("next"))
    person = threading.Thread(target=_resume_when_paused, args=(events,), daemon=True)
    person.start()
    assert _as_flow(recipe, [gate, after]) == ["train:stage1 gate", "train:stage2"]
    person.join(10)
    assert events == ["asked", "resumed", "passed", "next"]


def _resume_when_paused(events: list[str]) -> None:
    while "asked" not in events:
        time.sleep(0.2)
    from prefect.client.orchestration import get_client  # Prefect reads the server's address when it is imported
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.flow_runs import resume_flow_run

    with get_client(sync_client=True) as client:
        while "resumed" not in events:
            time.sleep(0.5)
            for run in client.read_flow_runs(limit=10, sort=FlowRunSort.ID_DESC):
                if run.state is not None and run.state.is_paused():
                    events.append("resumed")
                    resume_flow_run(run.id)
