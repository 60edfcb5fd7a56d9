"""Recipes and settings: what is refused, and what the sentence says."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import main
from flows.recipe import load_recipe
from flows.work import report_of
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse, with_override

LONG = Path(__file__).parents[2] / "flows" / "recipes" / "demo-long.yaml"
RECIPE = Path(__file__).parents[2] / "flows" / "recipes" / "demo.yaml"


class Inner(Settings):
    rows: int = 1


class Outer(Settings):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key 'inner\.row'; did you mean 'rows'"):
        parse(Outer, {"inner": {"row": 3}}, "here")


def test_an_unknown_key_inside_a_list_names_its_place() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown key 'many\.1\.rowz'; did you mean 'rows'"):
        parse(Outer, {"many": [{}, {"rowz": 3}]}, "here")


def test_a_misspelt_required_key_is_told_as_misspelt() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'classes'"):
        load_recipe(RECIPE, ["web.clases=3"])


def test_a_wrong_value_names_its_key() -> None:
    with pytest.raises(ConfigurationError, match=r"web\.scenes"):
        load_recipe(RECIPE, ["web.scenes=many"])


def test_settings_reach_into_lists() -> None:
    recipe = load_recipe(RECIPE, ["training.stages.1.departures.steps=7", "recaption.engine=vllm"])
    assert recipe.training.stages[1].departures["steps"] == 7
    assert recipe.recaption.engine == "vllm"


@pytest.mark.parametrize("setting", ["web.scenes", "=3", "training.stages.9.stage=stage1", "name.deeper=1"])
def test_a_setting_that_leads_nowhere_is_refused(setting: str) -> None:
    data = {"name": "x", "web": {"scenes": 1}, "training": {"stages": [{}]}}
    with pytest.raises(ConfigurationError):
        with_override(data, setting)


def test_the_command_line_exits_2_with_one_sentence_on_a_wrong_recipe(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("nam: demo\n")
    result = CliRunner().invoke(main, ["run", str(wrong)])
    assert result.exit_code == 2
    assert "did you mean 'name'" in result.stderr and result.stderr.count("\n") == 1


def test_auditing_what_is_no_dataset_exits_3(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["audit", str(tmp_path / "absent")])
    assert result.exit_code == 3


def test_a_recipe_is_laid_over_the_one_that_it_extends() -> None:
    long, demo = load_recipe(LONG), load_recipe(RECIPE)
    assert long.name == "demo-long" and long.web.scenes > demo.web.scenes
    assert (long.web.port, long.recaption, long.sets) == (demo.web.port, demo.recaption, demo.sets)


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"extends: ../{tmp_path.name}/a.yaml\n")
    with pytest.raises(ConfigurationError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


def test_what_the_long_demo_departs_in_is_listed_in_its_report() -> None:
    keys = {departure.key for departure in report_of(load_recipe(LONG)).departures}
    assert {"stage1.steps", "stage2.learning_rate.llm", "stage3.px"} <= keys
