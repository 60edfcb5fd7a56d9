"""Recorded outputs of the official scorers are replayed whole, and anything unknown among them fails."""

import json
from pathlib import Path
from typing import Any

import pytest

from harmon.evaluation.vectors.__main__ import main
from harmon.evaluation.vectors.case import same
from harmon.evaluation.vectors.replay import REPLAYS, replay_file, replay_folder
from harmon.evaluation.vectors.rule import Rule
from pipelines.errors import HarmonError
from tests.parts import need_shared

VECTORS = "reference/vectors"
POPE = {"parse": {"source": "s", "cases": [{"text": "no", "official_llava": "no"}]}}


def written(folder: Path, name: str, content: Any) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_every_recorded_case_passes() -> None:
    results = list(replay_folder(need_shared(VECTORS)))
    assert not [str(result) for result in results if result.passed < result.total]
    assert {(result.file, result.group) for result in results} == set(REPLAYS)


def test_one_line_a_file_and_exit_0_where_all_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "pope", {"note": "n", **POPE})
    written(tmp_path, "mar_schedule", {"cases": [{"tokens": 16, "iters": 4, "sum_predicted": 16}]})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "mar_schedule 1/1\npope 1/1\n"


def test_exit_1_and_the_first_failure_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [{"text": "no", "official_llava": "no"}, {"text": "NO", "official_llava": "no"}]
    written(tmp_path, "pope", {"parse": {"source": "s", "cases": cases}})
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == "pope 1/2\n"
    assert "pope.parse 1/2 (s): case 1 ('NO'): official_llava is 'yes', recorded 'no'" in err


def test_json_lists_every_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, "pope", POPE)
    assert main([str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] and document["groups"][0]["total"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pope", {"unheard_of": {"source": "s", "cases": [{"text": "no"}]}}),
        ("unheard_of", POPE),
        ("pope", {"parse": {"source": "s", "cases": [{"text": "no", "unheard_of": "no"}]}}),
        ("pope", {"parse": {"source": "s", "cases": [{"text": "no"}]}}),
        ("pope", {"parse": {"source": "s", "cases": []}}),
        ("pope", {"parse": "cases"}),
        ("pope", {"parse": {"source": "s", "cases": [{"texts": "no", "official_llava": "no"}]}}),
        ("pope", {"note": "no group"}),
        ("pope", []),
    ],
)
def test_nothing_recorded_is_skipped(name: str, content: Any, tmp_path: Path) -> None:
    results = replay_file(written(tmp_path, name, content))
    assert [result for result in results if result.passed < result.total]


def test_a_folder_without_vectors_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no recorded vectors" in capsys.readouterr().err


def test_values_agree_within_the_tolerance_and_bools_only_with_bools() -> None:
    assert same({"a": [1.0, "x"]}, {"a": [1 + 1e-7, "x"]})
    assert not same({"a": [1.0]}, {"a": [1.0, 2.0]})
    assert not same(1, True) and not same(True, 1) and not same(None, False)
    assert not same(0.5, 0.5 + 1e-5)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("c=(7i+3)%3, r=2, a=(i*i)%3", (2 % 3 + 0, 2, 1)),
        ("c=r=a=2 if i<=4 else 1", (1, 1, 1)),
        ("c=r=a=2, ids 5, 6 and 700 missing", (2, 2, 2)),
        ("r=2", (0, 2, 0)),
        ("1 if i%3==0", (0, 0, 0)),
    ],
)
def test_rules_of_recorded_cases_are_understood(text: str, values: tuple[float, ...]) -> None:
    rule = Rule.of(text, ("c", "r", "a"))
    assert tuple(rule.value(name, 5) for name in "cra") == values


@pytest.mark.parametrize("text", ["q=1", "c=open('x')", "c=i.real", "c=("])
def test_other_rules_are_refused(text: str) -> None:
    with pytest.raises(HarmonError):
        Rule.of(text, ("c", "r", "a")).value("c", 1)
