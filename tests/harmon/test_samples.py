"""Pictures and answers while training: of the newest checkpoint, held fast, with the averaged weights."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from small_checkpoints import make_run, tiny_model, weights

from harmon.trained import load
from harmon.training import samples
from harmon.training.checkpoint import AVERAGE, MODEL
from harmon.training.samples import SampleSettings, free_device, held, write_samples

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
    out = write_samples(SETTINGS, run_of(folder), folder)
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
    out = write_samples(SETTINGS, run_of(folder), folder)
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
    assert write_samples(SETTINGS, run_of(folder), folder) is None


def test_samples_are_made_on_the_jobs_device_where_it_has_room(monkeypatch):
    free = 10 << 30
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (free, 80 << 30))
    assert free_device("cuda", 1 << 30) == "cuda" and free_device("cuda", 3 << 30) == "cpu"
    assert free_device("cpu", 1) == "cpu"
