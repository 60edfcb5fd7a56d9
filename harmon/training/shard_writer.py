"""Writing a checkpoint's shards: each worker its own safetensors files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

FILE_BYTES = 2 << 30  # of one shard file: DCP holds one in memory while it writes it


class ShardWriter(HuggingFaceStorageWriter):
    """DCP's writer of sharded safetensors, which tells when a worker's files stand and when those of all do."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        sent: Callable[[set[str]], None],
        complete: Callable[[set[str]], None],
    ) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        self._sent, self._told = sent, complete

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        future = super().write_data(plan, planner)
        results: list[WriteResult] = future.wait()
        self._sent(_names(results))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._told({name for of_one in results for name in _names(of_one)})


def _names(results: Sequence[WriteResult]) -> set[str]:
    return {result.storage_data.relative_path for result in results}


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
