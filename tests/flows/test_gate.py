"""Gates between stages: what the metrics say, and a person's word."""

import json
from pathlib import Path

import pytest

from flows.gate import Gate, measured, pass_gate, passed
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import parse


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


def test_an_unknown_metric_is_refused_with_the_nearest_one(folder: Path) -> None:
    with pytest.raises(HarmonError, match="did you mean 'loss/text2image'"):
        measured(Gate(metric="loss/text2img", at_most=1.0), folder)


@pytest.mark.parametrize("settings", [{}, {"metric": "loss/text"}, {"at_least": 1.0}, {"metric": "x", "lines": 0}])
def test_a_gate_asks_a_bound_of_a_metric_or_a_person(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        parse(Gate, settings, "the gate")
    assert parse(Gate, {"approval": True}, "the gate").metric is None
