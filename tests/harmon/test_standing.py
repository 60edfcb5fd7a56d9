"""Where a stage stands: in its folder, in the store of its checkpoints, after a kill and on another machine."""

import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage

from harmon.training import checkpoint, loop, new_lines, standing
from harmon.training import job as job_module
from harmon.training.checkpoint import MODEL, STATE
from harmon.training.checkpoint_store import CheckpointStore
from harmon.training.execution import GuardConfig
from harmon.training.failure import FinalError
from harmon.training.job import (
    TrainJob,
    file_hash,
    metrics_lines,
    parsed_lines,
    stage_folder,
    stage_store,
    training_key,
)
from harmon.training.loop import final_weights, train
from harmon.training.metrics import append_line, go_back
from harmon.training.new_lines import NewLines
from harmon.training.samples import held
from harmon.training.shard_writer import ShardWriter
from harmon.training.standing import completed, erase, trained_steps, write_done
from pipelines.canonical import sha256_hex
from pipelines.errors import HarmonError
from pipelines.storage import file_sha256

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> TrainJob:
    return make_job(tmp_path_factory.mktemp("run"), small_stage(steps=4), dtype="float64", checkpoint_every=2)


@pytest.fixture(scope="module")
def plain(job) -> Path:
    return train(job)


def at(job: TrainJob, folder: Path, **changes: object) -> TrainJob:
    return job.model_copy(update={"runs": str(folder / "run"), "store": str(folder / "store"), **changes})


def test_a_kill_between_the_store_and_the_folder_does_not_end_the_stage_with_older_weights(
    job, plain, tmp_path, monkeypatch
):
    stored, real = at(job, tmp_path), checkpoint._appear

    def killed(attempt: Path, final: Path) -> None:
        if final.name == "000004":
            raise OSError("killed")
        real(attempt, final)

    monkeypatch.setattr(checkpoint, "_appear", killed)
    with pytest.raises(HarmonError, match="killed"):
        train(stored)
    folder, store = stage_folder(stored, training_key(job)), stage_store(stored, training_key(job))
    assert CheckpointStore(store).steps() == [2, 4]
    assert not (folder / "checkpoints" / "000004").exists()
    monkeypatch.undo()
    train(stored)
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()


def test_another_machine_finds_a_finished_stage_in_the_store(job, plain, tmp_path):
    stored, key = at(job, tmp_path), training_key(job)
    folder = train(stored)
    lines = metrics_lines(folder)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(HarmonError, match="train it first"):
        final_weights(folder)
    assert final_weights(folder, stage_store(stored, key)).read_bytes() == final_weights(plain).read_bytes()
    shutil.rmtree(tmp_path / "run")
    assert completed(stored, key)["steps"] == 4 and trained_steps(stored, key) == 4
    assert train(stored) == folder
    assert metrics_lines(folder) == lines  # for sinks and gates; nothing was trained again


def test_another_machine_goes_on_from_the_store_and_has_what_readers_want(job, plain, tmp_path):
    stored, key = at(job, tmp_path), training_key(job)
    train(stored, until=2)
    shutil.rmtree(tmp_path / "run")
    assert trained_steps(stored, key) == 2 and completed(stored, key) is None
    folder = train(stored)
    assert [line["step"] for line in metrics_lines(folder)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["000002", "000004"]
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()


def test_who_follows_from_another_machine_hears_each_line_once_with_the_checkpoints(job, tmp_path):
    stored, key = at(job, tmp_path), training_key(job)
    there, here = stage_folder(stored, key), tmp_path / "here"
    lines = NewLines(here, stage_store(stored, key))
    train(stored, until=2)
    assert lines.ask() == []  # it looks into the store now and then
    assert lines.ask(ended=True) == metrics_lines(there) and lines.ask(ended=True) == []
    train(stored)
    assert [line["step"] for line in lines.ask(ended=True)] == [3, 4]
    assert NewLines(here, stage_store(stored, key)).ask(ended=True) == []  # a later follower hears what is new to it
    with held(here, stage_store(stored, key)) as checkpoint:  # and samples look at the newest checkpoint
        assert checkpoint.name == "000004"
        assert (checkpoint / MODEL).read_bytes() == final_weights(there).read_bytes()
    assert CheckpointStore(stage_store(stored, key)).fetch_first(9, (MODEL,), tmp_path / "gone") is False


def test_who_follows_reads_each_line_once_also_where_training_goes_back(tmp_path, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr(new_lines, "parsed_lines", lambda text: read.append(text) or parsed_lines(text))
    lines, told = NewLines(tmp_path), []
    for step in range(1, 7):
        append_line(tmp_path, {"step": step})
        told += lines.ask()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step":')
        file.flush()
        told += lines.ask()
        file.write(" 7}\n")
    told += lines.ask()
    assert [line["step"] for line in told] == list(range(1, 8))
    assert sum(text.count("step") for text in read) == 7
    go_back(tmp_path, None, 4)
    for step in range(5, 9):
        append_line(tmp_path, {"step": step})
    assert [line["step"] for line in lines.ask()] == [8]


def test_a_stage_that_is_erased_is_gone_from_its_store_too(job, tmp_path):
    stored, key = at(job, tmp_path), training_key(job)
    train(stored, until=2)
    erase(stored, key)
    assert trained_steps(stored, key) == 0 and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_kill_in_erasing_leaves_no_part_of_a_stage(job, tmp_path, monkeypatch):
    here, key = at(job, tmp_path, store=None), training_key(job)
    folder = train(here, until=2)

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(standing.shutil, "rmtree", killed)
        erase(here, key)
    assert not folder.exists()
    train(here, until=2)
    erase(here, key)
    assert not list((tmp_path / "run").iterdir())


def test_a_store_that_is_named_later_does_not_begin_the_stage_anew_unasked(job, plain, tmp_path):
    stored, key = at(job, tmp_path), training_key(job)
    folder = train(at(job, tmp_path, store=None), until=2)
    with pytest.raises(FinalError, match=r"is empty, and the stage has a checkpoint in .*000002: copy the folder into"):
        train(stored)
    assert len(metrics_lines(folder)) == 2
    shutil.copytree(folder / "checkpoints", stage_store(stored, key), dirs_exist_ok=True)
    assert final_weights(train(stored)).read_bytes() == final_weights(plain).read_bytes()


def test_two_processes_may_say_at_once_that_a_stage_is_done(tmp_path):
    """As whoever follows it from the store and its own rank 0 do."""
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: write_done(tmp_path, b'{"number": %d}' % number), range(200)))
    assert json.loads((tmp_path / "done.json").read_bytes())["number"] < 200
    assert [path.name for path in tmp_path.iterdir()] == ["done.json"]


def test_training_until_a_step_ends_there_with_a_checkpoint_and_goes_on_as_if_it_had_not(job, plain, tmp_path):
    here = at(job, tmp_path, store=None)
    folder = train(here, until=3)
    assert trained_steps(here, training_key(job)) == 3 and completed(here, training_key(job)) is None
    assert [line["step"] for line in metrics_lines(folder)] == [1, 2, 3]
    assert train(here, until=2) == folder and len(metrics_lines(folder)) == 3  # it stands beyond it
    train(here)
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()


def test_numbers_that_are_not_finite_are_null_and_end_nothing(job, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "text_sensitivity", lambda *_: math.nan)
    folder = train(at(job, tmp_path, store=None))
    assert [line["text_sensitivity"] for line in metrics_lines(folder)] == [None] * 4
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    state = json.loads((folder / "checkpoints" / "000004" / STATE).read_bytes())
    assert state["metrics"]["text_sensitivity"] is None


def notices(at_step: int, then: Callable[[], None] = lambda: None) -> Callable[[], str]:
    """A machine that is to be taken away from the end of step `at_step` on; `then` is called in the next one."""
    asked = [0]

    def told() -> str:
        asked[0] += 1
        if asked[0] == at_step + 1:
            then()
        return "save" if asked[0] >= at_step else "go on"

    return told


def test_a_notice_is_heeded_in_its_step_though_no_metrics_are_due(job, plain, tmp_path):
    folder = train(at(job, tmp_path, store=None, checkpoint_every=99, log_every=99, keep=9), told=notices(2))
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["000002", "000004"]
    assert [line["step"] for line in metrics_lines(folder)] == [2, 4]
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()


def test_a_checkpoint_for_a_notice_stands_before_the_next_step(job, tmp_path, monkeypatch):
    here, stands = at(job, tmp_path, store=None, checkpoint_every=99, save_behind=True), []
    real = ShardWriter.write_data

    def slow(*arguments: object) -> object:
        time.sleep(1.0)
        return real(*arguments)

    monkeypatch.setattr(ShardWriter, "write_data", slow)
    folder = stage_folder(here, training_key(job)) / "checkpoints" / "000002"
    train(here, told=notices(2, then=lambda: stands.append(folder.exists())))
    assert stands == [True]


def test_a_file_that_a_job_names_is_read_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(job_module, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"first")
    assert file_hash(weights) == file_hash(weights) == sha256_hex(b"first") and len(read) == 1
    weights.write_bytes(b"other")
    assert file_hash(weights) == sha256_hex(b"other") and len(read) == 2
    with pytest.raises(HarmonError, match="cannot be read"):
        file_hash(tmp_path / "absent")


def test_the_key_holds_of_the_guard_what_decides_weights(job):
    def key(**guard: object) -> str:
        return training_key(job.model_copy(update={"guard": GuardConfig(**guard)}))

    assert key(patience=3) == key(window=32) == key() == training_key(job)
    assert key(sigmas=6.0, patience=3) == key(sigmas=6.0) != key()
    assert key(sigmas=6.0, window=32) != key(sigmas=6.0)


def test_a_stage_goes_on_with_another_patience_and_an_idle_window(job, plain, tmp_path):
    train(at(job, tmp_path, store=None), until=2)
    folder = train(at(job, tmp_path, store=None, guard=GuardConfig(patience=3, window=32)))
    assert final_weights(folder).read_bytes() == final_weights(plain).read_bytes()
