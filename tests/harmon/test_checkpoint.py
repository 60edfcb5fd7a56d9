"""Checkpoints: complete or invisible, as many as are kept, in a folder and in S3, at once or behind the training."""

import json
import time
from pathlib import Path

import boto3
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from harmon.training import checkpoint
from harmon.training.checkpoint import (
    MODEL,
    STATE,
    Checkpoints,
    TrainState,
    complete_checkpoints,
    prune_checkpoints,
)
from harmon.training.checkpoint_store import SHARDS, CheckpointStore
from harmon.training.failure import FinalError
from harmon.training.hold import Hold
from harmon.training.job import METRICS
from harmon.training.shard_writer import ShardWriter
from pipelines.errors import HarmonError
from pipelines.storage import open_store
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


def test_a_checkpoint_that_is_deleted_is_invisible_before_a_part_of_it_is_gone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (2, 4):
        save(checkpoints, step)

    def killed(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / STATE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        prune_checkpoints(tmp_path, keep=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["000004"]
    save(checkpoints, 6)
    assert not list(tmp_path.glob(".*"))  # the next save takes away what was left


def test_a_shard_that_is_gone_from_a_complete_checkpoint_is_missed(tmp_path):
    """Of a sharded tensor: DCP would load the others and leave its part as it was."""
    whole, folder = torch.arange(12.0).view(6, 2), tmp_path / "000002" / SHARDS
    folder.mkdir(parents=True)
    for rank in range(3):
        place = json.dumps({"model/w": {"saved_offsets": [2 * rank, 0]}})
        part, told = whole[2 * rank : 2 * rank + 2].contiguous(), {"DCP_SHARDING_INFO": place}
        save_file({"model/w": part}, folder / f"shard-{rank:05d}-model-00001-of-00001.safetensors", told)
    checkpoints, found = Checkpoints(tmp_path, keep=2), {"model/w": torch.zeros(6, 2)}
    checkpoints.load(2, found)
    assert torch.equal(found["model/w"], whole)
    (folder / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(HarmonError, match="gone, and a part of model/w with it; delete its checkpoint"):
        checkpoints.load(2, found)
    (folder / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(HarmonError, match="Size mismatch"):
        checkpoints.load(2, found)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of two workers that have saved, after a killed attempt and beside a decision."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "cleared" / ".writing-000002").mkdir(parents=True)
    workers = mp.start_processes(_work, args=(str(folder),), nprocs=2, join=False, start_method="spawn")
    deadline = time.monotonic() + 400
    while not workers.join(timeout=1):
        if time.monotonic() > deadline:
            for process in workers.processes:
                process.kill()
            pytest.fail("the workers wait for each other")
    return folder


def _work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        _save_after_clearing(Path(folder, "cleared"), patch)
    with pytest.MonkeyPatch.context() as patch:
        _decide_while_saving(rank, Path(folder, "decided"), patch)
    dist.destroy_process_group()


def test_no_worker_makes_its_folder_while_rank_0_clears_what_a_kill_has_left(two):
    assert same(loaded(Checkpoints(two / "cleared", keep=2), 2), 2)


def _save_after_clearing(folder: Path, patch: pytest.MonkeyPatch) -> None:
    cleared, remove, plan = folder / "told", checkpoint._remove, ShardWriter.prepare_local_plan

    def slow(folders):
        time.sleep(1.0)
        remove(folders)
        cleared.touch()

    def planned(writer, given):  # makes the folder
        assert cleared.exists()
        return plan(writer, given)

    patch.setattr(checkpoint, "_remove", slow)
    patch.setattr(ShardWriter, "prepare_local_plan", planned)
    save(Checkpoints(folder, keep=2), 2)


def test_workers_decide_together_while_a_save_is_under_way_behind_them(two):
    assert same(loaded(Checkpoints(two / "decided", keep=2), 2), 2)
    assert [(two / "decided" / f"said-{rank}").read_text() for rank in range(2)] == ["go on"] * 2


def _decide_while_saving(rank: int, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """At rank 0 the decision comes before what the save has to say, at rank 1 after its beginning."""
    plan = ShardWriter.prepare_local_plan

    def planned(writer, given):
        time.sleep(0.0 if rank else 1.5)
        return plan(writer, given)

    patch.setattr(ShardWriter, "prepare_local_plan", planned)
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(TrainState(step=2, key="k", cursors={}), tensors(2), {}, behind=True)
    time.sleep(0.7)
    (folder / f"said-{rank}").write_text(checkpoints.decided(lambda: "go on"))
    checkpoints.wait()


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


def test_uploads_that_a_kill_has_left_in_s3_go_with_the_next_save(tmp_path, s3_root):  # noqa: F811
    store = open_store(s3_root)
    place = {"Bucket": store.root.bucket, "Key": f"{store.root.prefix}/000002/{SHARDS}/large.safetensors"}
    boto3.client("s3").create_multipart_upload(**place)
    assert [upload.path for upload in store.uploads()] == [f"000002/{SHARDS}/large.safetensors"]
    save(Checkpoints(tmp_path, 2, s3_root), 2)
    assert not store.uploads()


def test_a_stage_in_s3_has_one_trainer(tmp_path, s3_root, monkeypatch):  # noqa: F811
    """Two machines share nothing else."""
    monkeypatch.setattr("harmon.training.hold.PATIENCE_SECONDS", 1.0)
    first, second = (Hold(tmp_path / name, store=s3_root, renew=0.1, lapse=1000.0) for name in ("here", "there"))
    first.take()
    with pytest.raises(FinalError, match=f"trains the stage in {s3_root} since"):
        second.take()
    first.check()
    first.leave()
    second.take()
    second.leave()
    assert not open_store(s3_root).list() and not list(tmp_path.rglob("trainer.json"))
