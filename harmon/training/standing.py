"""How far a stage is, as its folder knows it, or the store of its checkpoints where that knows more."""

import json
import shutil
from pathlib import Path
from typing import Any

from harmon.training.checkpoint import bring, latest_step
from harmon.training.checkpoint_store import CheckpointStore
from harmon.training.job import DONE, TrainJob, done, stage_folder, stage_store

CHECKPOINTS = "checkpoints"


def completed(job: TrainJob, key: str) -> dict[str, Any] | None:
    """What the finished stage says of itself, None before; what readers want of it then lies in its folder."""
    folder = stage_folder(job, key)
    recall(folder, stage_store(job, key))
    return done(folder, key)


def trained_steps(job: TrainJob, key: str) -> int:
    """Train steps in the latest checkpoint that the stage can go on from."""
    store = stage_store(job, key)
    return latest_step(stage_folder(job, key) / CHECKPOINTS, None if store is None else CheckpointStore(store)) or 0


def recall(folder: Path, store: str | None) -> None:
    """Where `store` says that the stage has finished and `folder` does not: bring its last checkpoint, and say so."""
    if store is None or (folder / DONE).exists():
        return
    checkpoints = CheckpointStore(store)
    record = checkpoints.record()
    if record is None:
        return
    bring(checkpoints, int(json.loads(record)["checkpoint"]), folder / CHECKPOINTS)
    write_done(folder, record)


def write_done(folder: Path, record: bytes) -> None:
    """Say that the stage in `folder` has finished."""
    attempt = folder / f"{DONE}.writing"
    attempt.write_bytes(record)
    attempt.replace(folder / DONE)


def erase(job: TrainJob, key: str) -> None:
    """Take the stage away, here and in its store, so that it begins anew."""
    folder, store = stage_folder(job, key), stage_store(job, key)
    if store is not None:
        CheckpointStore(store).erase()
    if folder.exists():
        shutil.rmtree(folder)
