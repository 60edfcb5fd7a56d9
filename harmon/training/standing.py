"""How far a stage is, as its folder knows it, or the store of its checkpoints where that knows more."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harmon.training.checkpoint import MODEL, Checkpoints, bring, latest_checkpoint, latest_step
from harmon.training.checkpoint_store import SHARDS, CheckpointStore
from harmon.training.failure import FinalError
from harmon.training.hold import Hold
from harmon.training.job import DONE, METRICS, TrainJob, done, file_hash, stage_folder, stage_store
from harmon.training.metrics import go_back
from harmon.training.mixture import cursors
from pipelines.canonical import canonical_json
from pipelines.disk import write_whole

CHECKPOINTS = "checkpoints"


def completed(job: TrainJob, key: str) -> dict[str, Any] | None:
    """What the finished stage says of itself, None before; what readers want of it then lies in its folder."""
    folder = stage_folder(job, key)
    recall(folder, stage_store(job, key))
    return done(folder, key)


def begun(job: TrainJob, key: str, checkpoints: Checkpoints) -> int:
    """At rank 0: the train step to go on from, all that the folder needs for it being there, and nothing of beyond.

    Raises:
        FinalError: the latest checkpoint is another training's, or lies here while the store has none.
    """
    folder = stage_folder(job, key)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    latest = checkpoints.latest()
    if latest is None:
        _check_nothing_lies_here(checkpoints)
        go_back(folder, None, 0)
        return 0
    state = checkpoints.state(latest)
    if state.step != latest or state.key != key or state.cursors != cursors(job.stage, latest):
        where = stage_store(job, key) or folder
        raise FinalError(f"Checkpoint {latest} in {where} belongs to another training; remove it.")
    checkpoints.bring(latest)
    go_back(folder, checkpoints.folder / f"{latest:06d}", latest)
    return latest


def _check_nothing_lies_here(checkpoints: Checkpoints) -> None:
    """Where a store was named after the stage had begun, what it has learned is not to be begun anew unasked."""
    here = latest_checkpoint(checkpoints.folder)
    if checkpoints.store is not None and here is not None and (here / SHARDS).exists():
        raise FinalError(
            f"The store {checkpoints.store.files.root} is empty, and the stage has a checkpoint in {here}: copy the "
            "folder into the store, name no store, or move the folder away to begin anew."
        )


def finish(job: TrainJob, key: str, left_out: Mapping[str, list[int]], checkpoints: Checkpoints) -> None:
    """At rank 0: say that the stage is done, of the weights of its last step and no others."""
    checkpoint = checkpoints.folder / f"{job.stage.steps:06d}"
    record = {"key": key, "stage": job.stage.stage, "steps": job.stage.steps, "checkpoint": checkpoint.name}
    record |= {"left_out": dict(left_out), "weights": file_hash(checkpoint / MODEL)}
    said = canonical_json(record)
    if checkpoints.store is not None:
        checkpoints.store.set_record(said)
    write_done(stage_folder(job, key), said)


def trained_steps(job: TrainJob, key: str) -> int:
    """Train steps in the latest checkpoint that the stage can go on from."""
    store = stage_store(job, key)
    return latest_step(stage_folder(job, key) / CHECKPOINTS, None if store is None else CheckpointStore(store)) or 0


def recall(folder: Path, store: str | None) -> None:
    """Where `store` says that the stage has finished and `folder` does not: bring its last checkpoint and its lines of
    metrics, and say so.
    """
    if store is None or (folder / DONE).exists():
        return
    checkpoints = CheckpointStore(store)
    record = checkpoints.record()
    if record is None:
        return
    last = int(json.loads(record)["checkpoint"])
    bring(checkpoints, last, folder / CHECKPOINTS)
    if not (folder / METRICS).exists():
        go_back(folder, folder / CHECKPOINTS / f"{last:06d}", last)
    write_done(folder, record)


def write_done(folder: Path, record: bytes) -> None:
    """Say that the stage in `folder` has finished."""
    write_whole(folder / DONE, record)


def erase(job: TrainJob, key: str) -> None:
    """Take the stage away, here and in its store, so that it begins anew. Raises FinalError where it is trained now."""
    folder, store = stage_folder(job, key), stage_store(job, key)
    hold = Hold(folder, store=store)
    hold.take()
    try:
        if store is not None:
            CheckpointStore(store).erase()
    finally:
        hold.leave()
    gone = folder.with_name(f".{folder.name}.gone")  # at once, so that a kill leaves no part of a stage
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
