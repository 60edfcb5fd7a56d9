"""What follows a training: a flow run that is cancelled waits for none of its looks."""

import sys
import time
from pathlib import Path

import pytest

from flows import watching
from flows.flow_run import Cancelled
from flows.recipe import load_recipe
from flows.watching import WatchSettings, watched
from harmon.training.samples import SampleSettings
from pipelines.errors import ConfigurationError
from tests.flows.small_run import RECIPE


def test_a_follower_that_is_cancelled_waits_for_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [
        sys.executable,
        "-c",
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(600)",
    ]
    monkeypatch.setattr(watching, "look_command", lambda *asked: slow)
    settings = WatchSettings(samples=SampleSettings(every=2))
    begun, deadline = time.monotonic(), time.monotonic() + 60
    with pytest.raises(Cancelled), watched(settings, tmp_path, tmp_path, "small") as on_line:
        assert on_line is not None
        for step in (1, 2, 4):  # no call returns later for the sample that is drawn
            on_line({"step": step})
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raise Cancelled("cancelled in the UI")
    assert time.monotonic() - begun < 60


def test_a_gate_on_scenes_asks_what_the_recipe_scores() -> None:
    gate = "training.stages.0.gate={metric: scenes/held_out/colour, at_least: 0.5}"
    with pytest.raises(ConfigurationError, match=r"only training\.watch\.samples\.scenes measures: set it"):
        load_recipe(RECIPE, [gate])
    watch = "training.watch.samples={every: 100, scenes: {held_out: %d}}"
    assert load_recipe(RECIPE, [gate, watch % 8]).training.stages[0].gate is not None
    with pytest.raises(ConfigurationError, match="does not have"):
        load_recipe(RECIPE, [gate, watch % 0])
    with pytest.raises(ConfigurationError, match="of the last checkpoint alone; leave it out"):
        load_recipe(RECIPE, [gate.replace("}", ", lines: 3}"), watch % 8])
