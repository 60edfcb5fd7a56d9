"""What training measures from one line of metrics to the next.

It is gathered on the device: the host reads nothing off it before the line is written.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harmon.model.harmon import LossSum
from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.micro import Part
from harmon.training.mixture import cursors
from harmon.training.sources import SourceLosses
from harmon.training.speed import Speed, peak_memory, peak_of_all
from harmon.training.stage import TASKS


class Meter:
    """Losses by task and source, speed, and what the guard skipped, of the stage of `data` on `device`."""

    def __init__(self, data: StageData, device: torch.device) -> None:
        stage = data.stage
        self._data, self._device = data, device
        rank, self._world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        peak = peak_of_all(device, self._world)
        self._speed = Speed.of(stage, data.model, data.lengths(), peak) if rank == 0 else None
        self._sources = SourceLosses(data.mixture, [task for task in TASKS if stage.ratio.of(task)], device)
        # each task's loss sum and count over this worker's rows: of the step, and since the last line
        self._step = torch.zeros(2, len(TASKS), dtype=torch.float64, device=device)
        self._sums = torch.zeros_like(self._step)
        self._begin_again()

    def _begin_again(self) -> None:
        self._sums.zero_()
        self._skips: list[Tensor] = []
        self._data_seconds, self._since = 0.0, time.perf_counter()

    def read(self, seconds: float) -> None:
        """Count `seconds` in which the step waited for its samples."""
        self._data_seconds += seconds

    def add(self, part: Part, losses: LossSum) -> None:
        """Take in one micro-batch of the step; one that stands in counts nothing."""
        if part.stands_in:
            return
        task = TASKS.index(part.block.task)
        self._sources.add(part.block.task, part.batch, losses.per_sample)
        self._step[0, task] += losses.total.detach()
        self._step[1, task] += part.batch.count

    def end_step(self, skip: Tensor) -> None:
        """Count the step, unless the guard's word `skip` is above 0."""
        self._sums += self._step.masked_fill(skip > 0, 0.0)
        self._step.zero_()
        self._sources.end_step(skip)
        self._skips.append(skip)

    def line(
        self,
        finished: int,
        rates: Mapping[str, float],
        norm: Tensor,
        batches: Sequence[ImageBatch | ChatBatch | None],
    ) -> dict[str, Any]:
        """The line of metrics after train step `finished`; all workers ask for it together, and begin anew."""
        if dist.is_initialized():
            dist.all_reduce(self._sums)
        sums, counts = self._sums.tolist()  # waits for the device: before, its steps are not done, only asked of it
        stage, seconds = self._data.stage, time.perf_counter() - self._since
        seen, samples = cursors(stage, finished), len(self._skips) * stage.global_batch
        line: dict[str, Any] = {
            "step": finished,
            "workers": self._world,
            "loss": {task: s / n for task, s, n in zip(TASKS, sums, counts, strict=True) if n},
            "source_loss": self._sources.told(),
            "source_epochs": self._data.epochs(seen),
            "rejected": self._data.rejected_since(self._device),
            "rate": dict(rates),
            "gradient_norm": norm.item(),
            "masked": [batch.masked / self._data.tokens for batch in batches if isinstance(batch, ImageBatch)],
            "samples": seen,
            "ratio": {task: number / sum(seen.values()) for task, number in seen.items()},
            "samples_per_second": samples / seconds,
            "data_share": self._data_seconds / seconds,
            "peak_memory": peak_memory(self._device),
        }
        line |= self._speed.measures(samples / seconds) if self._speed else {}
        if skipped := torch.stack(self._skips).nonzero()[:, 0].tolist():
            line["skipped"] = [finished - len(self._skips) + 1 + place for place in skipped]
        self._begin_again()
        return line
