"""Checkpoints: complete or invisible, as many as are kept, in a folder and in S3, at once or behind the training."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from harmon.training import checkpoint
from harmon.training.checkpoint import MODEL, STATE, Checkpoints, TrainState, complete_checkpoints
from harmon.training.checkpoint_store import SHARDS, CheckpointStore
from harmon.training.job import METRICS
from harmon.training.shard_writer import ShardWriter
from pipelines.errors import HarmonError
from tests.s3_server import s3_root, s3_server  # noqa: F401  # fixtures


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"model/a": torch.randn(7, 3, generator=generator), "model/b": torch.randn(5, generator=generator).double()}
    return drawn | {"moment/a/step": torch.tensor(float(seed)), "guard/seen": torch.tensor(seed)}


def empty() -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in tensors(0).items()}


def save(checkpoints: Checkpoints, step: int, behind: bool = False) -> None:
    made = tensors(step)
    state = TrainState(step=step, key="k", cursors={"text": step}, contents={"seed": 0}, metrics={"loss": 1.0})
    checkpoints.save(state, made, {MODEL: {"a": made["model/a"].clone()}}, behind)
    if behind:
        for value in made.values():
            value.zero_()  # as the next train step would
    checkpoints.wait()


def loaded(checkpoints: Checkpoints, step: int) -> dict[str, Tensor]:
    found = empty()
    checkpoints.load(step, found)
    return found


def same(found: dict[str, Tensor], step: int) -> bool:
    return all(torch.equal(value, tensors(step)[name]) for name, value in found.items())


@pytest.mark.parametrize("behind", [False, True])
def test_what_was_saved_comes_back_and_only_the_newest_stay(tmp_path, behind):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        save(checkpoints, step, behind)
        assert same(loaded(checkpoints, step), step)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["000004", "000006"]
    assert checkpoints.latest() == 6 and checkpoints.state(6).cursors == {"text": 6}
    assert torch.equal(load_file(tmp_path / "000006" / MODEL)["a"], tensors(6)["model/a"])
    assert not any(b"pickle" in path.read_bytes()[:64] for path in tmp_path.rglob("*") if path.is_file())
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_an_attempt_that_was_killed_is_invisible_and_goes_with_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 2)
    left = tmp_path / ".writing-000004" / SHARDS
    left.mkdir(parents=True)
    (left / "shard-00009-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert checkpoints.latest() == 2
    save(checkpoints, 4)
    assert same(loaded(checkpoints, 4), 4) and not list(tmp_path.glob(".writing-*"))


def test_a_damaged_checkpoint_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 2)
    for path in (tmp_path / "000002" / SHARDS).iterdir():
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(HarmonError, match=r"000002/shards/.* is damaged .*delete its checkpoint to go on from the one"):
        loaded(checkpoints, 2)
    (tmp_path / "000002" / STATE).write_text("{")
    with pytest.raises(HarmonError, match="000002 is damaged"):
        checkpoints.state(2)


def test_a_failed_save_behind_the_training_is_told_by_the_next_call(tmp_path):
    checkpoints = Checkpoints(tmp_path / "folder", keep=1)
    (tmp_path / "folder").write_text("a file where the folder should be")
    state = TrainState(step=1, key="k", cursors={})
    with pytest.raises(HarmonError, match=r"cannot be written \(NotADirectoryError"):
        checkpoints.save(state, tensors(1), {}, behind=True)
        checkpoints.wait()


def test_no_worker_makes_its_folder_while_rank_0_clears_what_a_kill_has_left(tmp_path):
    (tmp_path / ".writing-000002").mkdir()
    mp.start_processes(_save_after_clearing, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    assert same(loaded(Checkpoints(tmp_path, keep=2), 2), 2)


def _save_after_clearing(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    cleared, remove, plan = Path(folder) / "cleared", checkpoint._remove, ShardWriter.prepare_local_plan

    def slow(folders):
        time.sleep(1.0)
        remove(folders)
        cleared.touch()

    def planned(writer, given):  # makes the folder
        assert cleared.exists()
        return plan(writer, given)

    checkpoint._remove, ShardWriter.prepare_local_plan = slow, planned
    save(Checkpoints(Path(folder), keep=2), 2)
    dist.destroy_process_group()


def test_a_checkpoint_carries_the_lines_of_metrics(tmp_path):
    checkpoints = Checkpoints(tmp_path / "here", 2, str(tmp_path / "store"))
    checkpoints.save(TrainState(step=2, key="k", cursors={}), tensors(2), {}, behind=True, lines=b'{"step": 2}\n')
    checkpoints.wait()
    assert (tmp_path / "here" / "000002" / METRICS).read_bytes() == b'{"step": 2}\n'
    assert CheckpointStore(str(tmp_path / "store")).read(2, METRICS) == b'{"step": 2}\n'


def in_store(tmp_path: Path, root: str) -> None:
    store = CheckpointStore(root)
    half = tmp_path / "half"
    half.write_bytes(b"half")
    store.send(2, f"{SHARDS}/shard-00009-model-00001-of-00001.safetensors", half)
    assert store.steps() == []
    checkpoints = Checkpoints(tmp_path / "here", 2, root)
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        save(checkpoints, step, behind=step > 2)
    assert store.steps() == [4, 6]
    elsewhere = Checkpoints(tmp_path / "there", 2, root)
    assert elsewhere.latest() == 6 and same(loaded(elsewhere, 6), 6)
    assert elsewhere.state(6).metrics == {"loss": 1.0}
    assert json.loads((tmp_path / "here" / "000006" / STATE).read_bytes())["step"] == 6
    assert (tmp_path / "here" / "000006" / MODEL).is_file()  # what readers want is here as well
    assert not (tmp_path / "here" / "000006" / SHARDS).exists()
    assert not (tmp_path / "there").exists()  # shards are read where they lie
    elsewhere.bring(6)
    assert sorted(path.name for path in (tmp_path / "there" / "000006").iterdir()) == [MODEL, STATE]
    store.erase()
    assert not store.files.list()


def test_a_store_keeps_shards_and_shows_only_what_is_complete(tmp_path):
    in_store(tmp_path, str(tmp_path / "store"))


def test_so_does_s3(tmp_path, s3_root):  # noqa: F811
    in_store(tmp_path, s3_root)
