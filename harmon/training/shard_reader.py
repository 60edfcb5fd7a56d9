"""Reading a checkpoint's shards where they lie, on a disk or in S3: each worker fetches the bytes that it needs.

A shard is a safetensors file: 8 bytes with the length of a header, the header in JSON, the tensors. torch's writer
says in the header where in the whole tensor each part stands.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from harmon.training.failure import FinalError
from pipelines.storage import ByteView, Store

THREADS = 8  # files read at a time
PIECE = 64 << 20  # bytes asked for at a time, and held by each thread
SHARDING, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"  # as torch's HuggingFaceStorageWriter writes them
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(frozen=True)
class Part:
    """A part of a tensor in a shard file."""

    name: str
    file: str
    start: int
    """Its first byte in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    """Where it begins in the whole tensor."""

    @property
    def index(self) -> MetadataIndex:
        """As DCP names it."""
        return MetadataIndex(self.name, self.offsets)


def read_parts(store: Store, files: Sequence[str]) -> list[Part]:
    """What stands in each of the shard `files`. Raises FinalError where one is damaged, or one of them is not there:
    DCP would leave what it held as it is.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [part for found in pool.map(partial(_parts_of, store), files) for part in found]
    for name, of_it in _by_name(parts).items():
        if sum(math.prod(part.shape) for part in of_it) != _whole(of_it).numel():
            raise FinalError(
                f"A shard beside {store.where(files[0])} is gone, and a part of {name} with it; delete its checkpoint "
                "to go on from the one before."
            )
    return parts


class ShardReader(StorageReader):
    """DCP's way to the `parts` in `store`; of each it reads the rows that this worker wants."""

    def __init__(self, store: Store, parts: Iterable[Part]) -> None:
        self._store = store
        self._parts = {part.index: part for part in parts}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between reads."""

    def read_metadata(self) -> Metadata:  # without **kwargs, or DCP would call it twice
        """Sizes and parts of every tensor."""
        sizes: dict[str, STORAGE_TYPES] = {
            name: _described(found) for name, found in _by_name(self._parts.values()).items()
        }
        return Metadata(sizes)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The parts are known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what `planner` asks for."""
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self._parts[item.storage_index].file, []).append(item)
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(partial(self._read, planner), wanted, wanted.values()):
                pass  # what a thread raised is raised here
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """It is made with a store, never found by a name."""
        return False

    def _read(self, planner: LoadPlanner, file: str, items: Sequence[ReadItem]) -> None:
        with closing(self._store.view(file)) as view:
            for item in items:
                target = planner.resolve_tensor(item)
                _fill(target.detach(), view, self._parts[item.storage_index], item)
                planner.commit_tensor(item, target)


def _parts_of(store: Store, file: str) -> list[Part]:
    try:
        with closing(store.view(file)) as view:
            body = 8 + int.from_bytes(view[0:8], "little")
            header: dict[str, Any] = json.loads(view[8:body])
            size = len(view)
        offsets = json.loads(header.pop("__metadata__")[SHARDING])
        if size != body + max((entry["data_offsets"][1] for entry in header.values()), default=0):
            raise ValueError("it ends too early")
        return [_part(name, file, body, entry, offsets[name][OFFSETS]) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError) as error:
        raise FinalError(
            f"{store.where(file)} is damaged ({error}); delete its checkpoint to go on from the one before."
        ) from error


def _part(name: str, file: str, body: int, entry: Mapping[str, Any], offsets: Sequence[int]) -> Part:
    start = body + entry["data_offsets"][0]
    return Part(name, file, start, TYPES[entry["dtype"]], tuple(entry["shape"]), tuple(offsets))


def _by_name(parts: Iterable[Part]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(part)
    return found


def _whole(parts: Sequence[Part]) -> torch.Size:
    """The size of the tensor that `parts` make up, as far as they reach."""
    ends = zip(*([o + s for o, s in zip(part.offsets, part.shape)] for part in parts))
    return torch.Size([max(end) for end in ends])


def _described(parts: Sequence[Part]) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.shape)) for part in parts]
    return TensorStorageMetadata(TensorProperties(dtype=parts[0].dtype), _whole(parts), chunks)


def _fill(target: Tensor, view: ByteView, part: Part, item: ReadItem) -> None:
    """Copy what `item` wants of `part` into `target`, whose shape is `item.lengths`: rows in pieces, then columns."""
    if not part.shape:
        target.copy_(_tensor(view, part, part.start, ()))
        return
    row_bytes = math.prod(part.shape[1:]) * part.dtype.itemsize
    columns = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets[1:], item.lengths[1:]))
    rows_at_once = max(1, PIECE // max(1, row_bytes))
    for row in range(0, item.lengths[0], rows_at_once):
        rows = min(rows_at_once, item.lengths[0] - row)
        start = part.start + (item.storage_offsets[0] + row) * row_bytes
        piece = _tensor(view, part, start, (rows, *part.shape[1:]))
        target[row : row + rows].copy_(piece[(slice(None), *columns)])


def _tensor(view: ByteView, part: Part, start: int, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape) * part.dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=part.dtype)
    return torch.frombuffer(bytearray(view[start : start + size]), dtype=part.dtype).view(shape)
