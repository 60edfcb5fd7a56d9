"""Pictures, answers and scores while training: of the newest checkpoint, held fast, with the averaged weights."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import make_run, tiny_model, weights

from flows import watching
from flows.gate import Gate, pass_gate, passed
from flows.watching import WatchSettings, last_scores
from harmon.trained import load
from harmon.training import samples
from harmon.training.checkpoint import AVERAGE, MODEL
from harmon.training.samples import SampleSettings, free_device, held, look
from harmon.training.scene_scores import METRIC, WatchedScenes, line_of, score_lines
from harmon.training.sinks import scalars
from pipelines.errors import HarmonError

SETTINGS = SampleSettings(every=1, prompts=("a red circle",), questions=("What is it?",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The stage's folder in a run of one checkpoint, 000010."""
    return make_run(tmp_path / "run") / "train" / "stage1-aaaaaaaa"


def run_of(folder: Path) -> Path:
    return folder.parents[1]


def checkpoint(folder: Path, step: int, seed: int, name: str = MODEL) -> Path:
    path = folder / "checkpoints" / f"{step:06d}"
    path.mkdir(exist_ok=True)
    save_file(weights(tiny_model(), seed), path / name)
    return path


def test_samples_are_made_with_the_averaged_weights(folder):
    checkpoint(folder, 10, seed=5, name=AVERAGE)
    out = look(SETTINGS, run_of(folder), folder)
    assert out == folder / "samples" / "000010"
    (answered,) = (json.loads(line) for line in (out / "answers.jsonl").open())
    averaged = make_run(folder.parents[2] / "averaged")
    shutil.copy(folder / "checkpoints/000010" / AVERAGE, averaged / "train/stage1-aaaaaaaa/checkpoints/000010" / MODEL)
    metadata = " ".join(map(str, Image.open(out / answered["file"]).info.values()))
    assert load(averaged).fingerprint in metadata and load(run_of(folder)).fingerprint not in metadata
    assert not (folder / "samples" / samples.HELD).exists()


def test_a_checkpoint_that_is_deleted_meanwhile_is_read_to_its_end(folder, monkeypatch):
    def after_deleting(*asked):
        shutil.rmtree(folder / "checkpoints" / "000010")
        return opened(*asked)

    opened = samples.open_run_at
    monkeypatch.setattr(samples, "open_run_at", after_deleting)
    out = look(SETTINGS, run_of(folder), folder)
    assert (out / "answers.jsonl").exists()


def test_a_checkpoint_that_is_deleted_before_it_is_held_gives_way_to_the_next(folder, monkeypatch):
    def deleted(source, target):
        if "000010" in str(source):
            checkpoint(folder, 20, seed=7)
            shutil.rmtree(folder / "checkpoints" / "000010")
        linked(source, target)

    linked = samples.os.link
    monkeypatch.setattr(samples.os, "link", deleted)
    with held(folder) as found:
        assert found.name == "000020" and load_file(found / MODEL)
    assert not found.exists()


def test_an_average_that_is_deleted_first_is_not_taken_for_absent(folder, monkeypatch):
    """The newest checkpoint's average goes while its other weights are still there."""

    def late(source, target):
        if "000010" in str(source):
            checkpoint(folder, 20, seed=7)
            checkpoint(folder, 20, seed=8, name=AVERAGE)
        linked(source, target)

    linked = samples.os.link
    monkeypatch.setattr(samples.os, "link", late)
    with held(folder) as found:
        assert found.name == "000020"
        assert found.joinpath(MODEL).read_bytes() == (folder / "checkpoints/000020" / AVERAGE).read_bytes()


def test_without_a_checkpoint_there_are_no_samples(folder):
    shutil.rmtree(folder / "checkpoints")
    assert look(SETTINGS, run_of(folder), folder) is None


def test_samples_are_made_on_the_jobs_device_where_it_has_room(monkeypatch):
    free = 10 << 30
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, 80 << 30))
    assert free_device("cuda", 1 << 30) == "cuda" and free_device("cuda", 3 << 30) == "cpu"
    assert free_device("cpu", 1) == "cpu"


SUITE = WatchedScenes(held_out=2, seen=0, two=1, three=0, asked=1)
SCORED = SampleSettings(every=1, scenes=SUITE)


def test_a_look_writes_a_line_of_scores_for_each_checkpoint(folder, monkeypatch):
    look(SCORED, run_of(folder), folder)
    checkpoint(folder, 20, seed=7)
    look(SCORED, run_of(folder), folder)
    first, second = score_lines(folder)
    assert (first["step"], second["step"]) == (10, 20) and first["weights"] != second["weights"]
    assert first["cases"]["held_out"]["colour"] == 2 and first["cases"]["two"]["both"] == 1
    assert set(scalars(first["scenes"], METRIC)) <= set(SUITE.metrics())
    assert "seen" not in first["scenes"] and first["chance"]["held_out"]["colour"] == pytest.approx(1 / 8)
    monkeypatch.setattr(samples, "open_run_at", None)  # what is scored is not opened again
    look(SCORED, run_of(folder), folder)
    assert score_lines(folder) == [first, second]


def test_another_suite_scores_the_same_checkpoint_again(folder):
    look(SCORED, run_of(folder), folder)
    other = SUITE.model_copy(update={"held_out": 1})
    look(SCORED.model_copy(update={"scenes": other}), run_of(folder), folder)
    (line,) = score_lines(folder)
    assert line["cases"]["held_out"]["colour"] == 1
    assert line_of(folder, 10, SUITE) is None and line_of(folder, 10, other) == line


def test_a_gate_opens_and_shuts_by_the_scores_of_the_last_checkpoint(folder, monkeypatch):
    suite = WatchedScenes(held_out=0, seen=0, two=0, three=0, asked=1)
    settings = WatchSettings(samples=SampleSettings(every=10, scenes=suite))

    def scores():
        return last_scores(settings, run_of(folder), folder, 10)

    gate = Gate(metric="scenes/answers/existence", at_least=0.0)
    pass_gate(gate, folder, "stage1", "key", scores)  # no look has scored the checkpoint: it is scored now
    assert passed(gate, folder, "key")
    path = folder / "scores.jsonl"
    line = json.loads(path.read_text())
    assert (line["step"], list(line["scenes"])) == (10, ["answers"])
    for share, opens in ((0.75, True), (0.25, False)):
        path.write_text(json.dumps(line | {"scenes": {"answers": {"existence": share}}}) + "\n")
        gate = Gate(metric="scenes/answers/existence", at_least=0.5)
        if opens:
            pass_gate(gate, folder, "stage1", "key", scores)
        else:
            with pytest.raises(
                HarmonError, match=r"shut: scenes/answers/existence is 0\.25, and it asks at least 0\.5"
            ):
                pass_gate(gate, folder, "stage1", "other key", scores)
    failing = [sys.executable, "-c", "raise SystemExit('the disk is full')"]
    monkeypatch.setattr(watching, "look_command", lambda *asked: failing)
    with pytest.raises(HarmonError, match=r"Train step 20 of .* could not be scored on scenes: the disk is full"):
        last_scores(settings, run_of(folder), folder, 20)  # scores of another checkpoint are none of this one's
