"""Checkpoints of a training run: sharded, complete or invisible, free of pickle.

    checkpoints/000500/shards/*.safetensors   torch DCP: `model/NAME`, `moment/NAME/KEY`, `average/NAME`, `guard/NAME`
    checkpoints/000500/model.safetensors      the weights, whole, under the released names; average.safetensors too
    checkpoints/000500/state.json             where the run stood, of what it was made, and its last line of metrics
    checkpoints/000500/metrics.jsonl          all its lines of metrics until there, for whoever goes on elsewhere

Every worker writes its own shards, and any number of workers reads them. The worker of rank 0 learns from DCP that
all are written, and only then writes state.json and gives the folder its name: one with a step's name is whole. In a
store in S3, where nothing is renamed, state.json comes last. Random states are not stored: every draw is keyed
(harmon.training.draws), drop-out's by step and worker.
"""

import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.tensor import DTensor

from harmon.training.agreement import cpu_group, rank_0_decides
from harmon.training.checkpoint_store import SHARDS, CheckpointStore
from harmon.training.failure import FinalError, words_of
from harmon.training.job import METRICS
from harmon.training.shard_reader import Part, ShardReader, read_parts
from harmon.training.shard_writer import ShardWriter
from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError
from pipelines.settings import Settings

MODEL, AVERAGE, STATE = "model.safetensors", "average.safetensors", "state.json"
T = TypeVar("T")
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a process of its own is no mistake


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
    ends it, and every save waits for the one before. `check` raises at rank 0 where a checkpoint must not be completed
    any more.
    """

    def __init__(
        self, folder: Path, keep: int, store: str | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        self.folder, self.keep, self._check = folder, keep, check
        self.store = None if store is None else CheckpointStore(store)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._group = cpu_group()  # of decisions and loads
        self._saving = cpu_group()  # of saves, which may be under way in a thread while something is decided
        self._pending: Future[Any] | None = None

    def decided(self, decide: Callable[[], T]) -> T:
        """What `decide` returns at rank 0, at every worker, since only rank 0's view of the folder counts."""
        return rank_0_decides(decide, self._group)

    def save(
        self,
        state: TrainState,
        tensors: dict[str, Tensor],
        plain: Mapping[str, dict[str, Tensor]],
        behind: bool,
        lines: bytes = b"",
    ) -> None:
        """Write the checkpoint of `state.step`: the workers' `tensors`, and of rank 0 the files of `plain` and the
        `lines` of metrics.

        `behind`: copy the tensors, return, and write in a thread. `plain` must not change in either case.
        """
        self.wait()
        self.decided(lambda: self._clear(state.step))  # no worker makes its folder before rank 0 has cleared it away
        attempt = self._attempt(state.step)
        writer = ShardWriter(
            attempt / SHARDS,
            tensors,
            sent=lambda names: self._send(state.step, attempt, names),
            complete=lambda names: self._complete(state, attempt, plain, lines, names),
        )
        settings: dict[str, Any] = {"storage_writer": writer, "process_group": self._saving}
        settings["no_dist"] = self._saving is None
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
        """The step of the newest complete checkpoint that training can go on from, or None."""
        return latest_step(self.folder, self.store)

    def state(self, step: int) -> TrainState:
        """The state of a complete checkpoint. Raises HarmonError where it is damaged."""
        if self.store is not None:
            return _state(self.store.read(step, STATE), self.store.where(step))
        return read_state(self.folder / f"{step:06d}")

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors` from a complete checkpoint, whatever number of workers wrote it.

        Each worker reads its own part of sharded tensors; all others are read once, by rank 0, and handed on.

        Raises:
            HarmonError: it is damaged, holds no shards, or holds others.
        """
        place = self.store or CheckpointStore(str(self.folder))
        sharded: dict[str, Tensor] = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        whole = {name: tensor for name, tensor in tensors.items() if name not in sharded}

        def read(tensors: dict[str, Tensor], parts: Sequence[Part], group: dist.ProcessGroup | None) -> None:
            with self._told(f"{step:06d} is damaged", "delete it to go on from the one before"):
                load(
                    tensors, storage_reader=ShardReader(place.files, parts), process_group=group, no_dist=group is None
                )

        def read_whole() -> list[Part]:
            parts = read_parts(place.files, place.shards(step))
            read(whole, parts, None)
            return parts

        parts = self.decided(read_whole)
        if self._group is not None:
            for tensor in whole.values():
                dist.broadcast(tensor, src=0)
            if sharded:
                read(sharded, parts, self._group)

    def bring(self, step: int) -> None:
        """At rank 0: what readers want of a complete checkpoint lies in the folder, also where another machine wrote
        it to the store.
        """
        if self.store is not None and self._rank == 0:
            bring(self.store, step, self.folder)

    @contextmanager
    def _told(self, what: str, todo: str) -> Iterator[None]:
        """DCP's errors, which tell every worker's traceback, in a sentence."""
        try:
            yield
        except (CheckpointException, SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise HarmonError(f"A checkpoint in {self.folder} {what} ({words_of(error)}); {todo}.") from error

    def _send(self, step: int, attempt: Path, names: set[str]) -> None:
        """In a worker's thread, its shards standing: take them to the store."""
        if self.store is not None:
            for name in sorted(names):
                self.store.send(step, f"{SHARDS}/{name}", attempt / SHARDS / name)
            if self._rank:
                shutil.rmtree(attempt)

    def _clear(self, step: int) -> None:
        """At rank 0: take away what killed attempts have left, in the folder and, of `step`, in the store."""
        _remove([*self.folder.glob(".writing-*"), *self.folder.glob(".gone-*")])
        if self.store is not None:
            self.store.drop_uploads()  # no worker sends anything now: the save before has ended
            self.store.clear(step)

    def _attempt(self, step: int) -> Path:
        """Where this worker writes the checkpoint of `step`: without a store all into one folder. With one, each worker
        has its own, perhaps on a machine of its own where rank 0 clears nothing, and sends it away.
        """
        attempt = self.folder / f".writing-{step:06d}"
        if self.store is None or self._rank == 0:
            return attempt
        _remove(self.folder.glob(f".writing-*-{self._rank}"))
        return attempt.with_name(f"{attempt.name}-{self._rank}")

    def _complete(
        self,
        state: TrainState,
        attempt: Path,
        plain: Mapping[str, dict[str, Tensor]],
        lines: bytes,
        shards: set[str],
    ) -> None:
        """At rank 0, all shards standing: what makes them a checkpoint, and the end of those before."""
        absent = [] if self.store is not None else [name for name in shards if not (attempt / SHARDS / name).exists()]
        if absent:
            raise HarmonError(
                f"{len(absent)} of {len(shards)} shards lie on other machines; keep runs on a disk that all machines "
                "share, or name a store"
            )
        for name, tensors in plain.items():
            save_file(tensors, attempt / name)
        if lines:
            (attempt / METRICS).write_bytes(lines)
        (attempt / STATE).write_bytes(canonical_json(state.model_dump()))
        if self.store is not None:
            shutil.rmtree(attempt / SHARDS)
            for name in (*plain, *([METRICS] if lines else [])):
                self.store.send(state.step, name, attempt / name)
        self._check()
        if self.store is not None:
            self.store.send(state.step, STATE, attempt / STATE)
            self.store.prune(self.keep)
        final = self.folder / f"{state.step:06d}"
        if final.exists():  # of a run that went back to an older one
            _vanish(final)
        _appear(attempt, final)
        _remove(self.folder.glob(".writing-*"))  # of killed attempts: every worker has ended this one
        prune_checkpoints(self.folder, self.keep)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, by step."""
    found = (path for path in folder.glob("*") if re.fullmatch(r"\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step below `folder`, or None."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def latest_step(folder: Path, store: CheckpointStore | None = None) -> int | None:
    """The step of the newest complete checkpoint in `store`, or below `folder` where there is none; None: no such."""
    if store is not None:
        return max(store.steps(), default=None)
    found = latest_checkpoint(folder)
    return None if found is None else int(found.name)


def bring(store: CheckpointStore, step: int, folder: Path) -> None:
    """Copy what readers want of a complete checkpoint from `store` to `folder`, unless it is there."""
    final, attempt = folder / f"{step:06d}", folder / f".writing-{step:06d}-{secrets.token_hex(4)}"
    if not final.exists():
        attempt.mkdir(parents=True)
        store.fetch(step, attempt)
        try:
            _appear(attempt, final)
        except OSError:
            if not final.exists():
                raise
            shutil.rmtree(attempt)  # another process has brought it meanwhile


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
        _vanish(path)


def _state(data: bytes, where: str) -> TrainState:
    try:
        return TrainState.model_validate(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> FinalError:
    return FinalError(f"The checkpoint {where} is damaged ({error}); delete it to go on from the one before.")


def _appear(attempt: Path, final: Path) -> None:
    """Give a whole checkpoint its name, durably."""
    for path in (*attempt.rglob("*"), attempt):
        _sync(path)
    attempt.rename(final)
    _sync(final.parent)


def _vanish(final: Path) -> None:
    """Delete a checkpoint, which loses its name first: a kill leaves no part of one that looks complete."""
    gone = final.with_name(f".gone-{final.name}")
    shutil.rmtree(gone, ignore_errors=True)
    final.rename(gone)
    shutil.rmtree(gone)


def _remove(folders: Iterable[Path]) -> None:
    for folder in list(folders):
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
