"""Checkpoints of a training run: sharded, complete or invisible, free of pickle.

    checkpoints/000500/shards/*.safetensors   torch DCP: `model/NAME`, `moment/NAME/KEY`, `average/NAME`, `guard/NAME`
    checkpoints/000500/model.safetensors      the weights, whole, under the released names; average.safetensors too
    checkpoints/000500/state.json             where the run stood, of what it was made, and its last line of metrics

Every worker writes its own shards, and any number of workers reads them. The worker of rank 0 learns from DCP that
all are written, and only then writes state.json and gives the folder its name: one with a step's name is whole. In a
store in S3, where nothing is renamed, state.json comes last. Random states are not stored: every draw is keyed
(harmon.training.draws), drop-out's by step and worker.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import WriteResult

from harmon.training.checkpoint_store import CheckpointStore
from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError
from pipelines.settings import Settings

MODEL, AVERAGE, STATE, SHARDS = "model.safetensors", "average.safetensors", "state.json", "shards"
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process of its own is no mistake
FILE_BYTES = 2 << 30  # of one shard file: DCP holds one in memory while it writes it


class TrainState(Settings):
    """Where a run stands: everything beside the tensors that going on needs."""

    step: int
    """Train steps done."""
    key: str
    """Training key of the run."""
    cursors: dict[str, int]
    """Each task's next sample number."""
    contents: dict[str, Any] | None = None
    """What the key was made of: stage, model, mixture with the content hashes of its column groups, first weights."""
    metrics: dict[str, Any] | None = None
    """The last line of metrics."""


class Checkpoints:
    """The checkpoints of one stage. All workers make it and call its methods, in the same order.

    `folder` lies where all workers reach it, unless there is a `store`: then the shards go there and `folder`, on the
    machine of rank 0, keeps what readers want of the newest `keep`. A save may end behind the training's back; `wait`
    ends it, and every save waits for the one before.
    """

    def __init__(self, folder: Path, keep: int, store: str | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.store = None if store is None else CheckpointStore(store)
        self._first = not dist.is_initialized() or dist.get_rank() == 0
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._pending: Future[Any] | None = None

    def save(
        self, state: TrainState, tensors: dict[str, Tensor], plain: Mapping[str, dict[str, Tensor]], behind: bool
    ) -> None:
        """Write the checkpoint of `state.step`: the workers' `tensors`, and of rank 0 the files of `plain`.

        `behind`: copy the tensors, return, and write in a thread. `plain` must not change in either case.
        """
        self.wait()
        attempt = self.folder / f".writing-{state.step:06d}"
        if self.store is not None and not self._first:
            attempt = attempt.with_name(f"{attempt.name}-{dist.get_rank()}")  # this machine's own: it is sent away
        if self._first:
            for left in self.folder.glob(".writing-*"):
                if not left.name.startswith(f"{attempt.name}-"):  # another worker's, who may be at work already
                    shutil.rmtree(left, ignore_errors=True)
            if self.store is not None:
                self.store.clear(state.step)  # other workers write only after rank 0 has joined them
        writer = _ShardWriter(
            attempt / SHARDS,
            _files(tensors),
            sent=lambda names: self._send(state.step, attempt, names),
            complete=lambda: self._complete(state, attempt, plain),
        )
        settings: dict[str, Any] = {"storage_writer": writer, "process_group": self._group}
        settings["no_dist"] = self._group is None
        if behind:
            self._pending = async_save(tensors, **settings)  # type: ignore[assignment]  # of a thread: a Future
        else:
            with self._told("cannot be written", "make room or mend the storage, and run again"):
                save(tensors, **settings)

    def wait(self) -> None:
        """End the save that is under way. Raises HarmonError where it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._told("cannot be written", "make room or mend the storage, and run again"):
                pending.result()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        if self.store is not None:
            return max(self.store.steps(), default=None)
        found = latest_checkpoint(self.folder)
        return None if found is None else int(found.name)

    def state(self, step: int) -> TrainState:
        """The state of a complete checkpoint. Raises HarmonError where it is damaged."""
        if self.store is not None:
            return _state(self.store.read(step, STATE), self.store.where(step))
        return read_state(self.folder / f"{step:06d}")

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` from a complete checkpoint, each worker its own part, whatever wrote it.

        Raises:
            HarmonError: it is damaged, holds no shards, or holds others.
        """
        folder, fetched = self.folder / f"{step:06d}", None
        if self.store is not None:
            folder = fetched = self.folder / f".fetched-{step:06d}-{os.getpid()}"
            self.store.fetch(step, SHARDS, fetched)
        try:
            with self._told(f"{folder.name} is damaged", "delete it to go on from the one before"):
                reader = HuggingFaceStorageReader(str(folder / SHARDS))
                load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        finally:
            if fetched is not None:
                shutil.rmtree(fetched, ignore_errors=True)

    @contextmanager
    def _told(self, what: str, todo: str) -> Iterator[None]:
        """DCP's errors, which tell every worker's traceback, in a sentence."""
        try:
            yield
        except (CheckpointException, SafetensorError, OSError, KeyError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise HarmonError(f"A checkpoint in {self.folder} {what} ({reason}); {todo}.") from error

    def _send(self, step: int, attempt: Path, names: set[str]) -> None:
        """In a worker's thread, its shards standing: take them to the store."""
        if self.store is not None:
            for name in sorted(names):
                self.store.send(step, f"{SHARDS}/{name}", attempt / SHARDS / name)
            if not self._first:
                shutil.rmtree(attempt)

    def _complete(self, state: TrainState, attempt: Path, plain: Mapping[str, dict[str, Tensor]]) -> None:
        """At rank 0, all shards standing: what makes them a checkpoint, and the end of those before."""
        for name, tensors in plain.items():
            save_file(tensors, attempt / name)
        (attempt / STATE).write_bytes(canonical_json(state.model_dump()))
        if self.store is not None:
            shutil.rmtree(attempt / SHARDS)
            for name in (*plain, STATE):
                self.store.send(state.step, name, attempt / name)
            self.store.prune(self.keep)
        for path in (*attempt.rglob("*"), attempt):
            _sync(path)
        final = self.folder / f"{state.step:06d}"
        if final.exists():  # of a run that went back to an older one
            shutil.rmtree(final)
        attempt.rename(final)
        _sync(self.folder)
        prune_checkpoints(self.folder, self.keep)


class _ShardWriter(HuggingFaceStorageWriter):
    """DCP's writer of sharded safetensors, which tells when a worker's files stand and when all do."""

    def __init__(
        self, folder: Path, files: dict[str, int], sent: Callable[[set[str]], None], complete: Callable[[], None]
    ) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=files, save_distributed=True)
        self._sent, self._told = sent, complete

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        future = super().write_data(plan, planner)
        results: list[WriteResult] = future.wait()
        self._sent({result.storage_data.relative_path for result in results})
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._told()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, by step."""
    found = (path for path in folder.glob("*") if re.fullmatch(r"\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step below `folder`, or None."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def read_state(checkpoint: Path) -> TrainState:
    """The state of a checkpoint. Raises HarmonError where it is damaged."""
    try:
        data = (checkpoint / STATE).read_bytes()
    except OSError as error:
        raise _damaged(str(checkpoint), error) from None
    return _state(data, str(checkpoint))


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(path)


def _state(data: bytes, where: str) -> TrainState:
    try:
        return TrainState.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> HarmonError:
    return HarmonError(f"The checkpoint {where} is damaged ({error}); delete it to go on from the one before.")


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of the file, from 1, that each tensor goes to, so that none is much larger than FILE_BYTES."""
    files, room = {}, FILE_BYTES
    number = 1
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and room < FILE_BYTES:
            number, room = number + 1, FILE_BYTES
        files[name] = number
        room -= size
    return files


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
