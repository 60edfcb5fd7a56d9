"""A deployment's run that redoes a step does so once, however often it is started again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows import flow_body, run
from flows.deployed import run as deployed_run
from flows.run import Outcome
from tests.flows.small_run import RECIPE


def test_a_run_that_was_suspended_or_lost_keeps_what_it_has_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def run_recipe(
        recipe: object, first: object, last: object, redo: str | None, within: Callable[..., object]
    ) -> Outcome:
        asked.append(redo)
        within(recipe, [])
        return Outcome("demo", (), 1, None)

    monkeypatch.setattr(run, "run_recipe", run_recipe)
    monkeypatch.setattr(flow_body, "do_all", lambda recipe, works: [])
    settings = (f"runs={tmp_path / 'run'}", f"data={tmp_path / 'data'}")
    for flow_run in ("first", "first", "second"):
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", flow_run)
        deployed_run.fn(str(RECIPE), redo_step="train", settings=settings)
    assert asked == ["train", None, "train"]
