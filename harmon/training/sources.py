"""The loss of each source of a mixture since the last line of metrics, gathered without waiting for the device."""

import torch
import torch.distributed as dist
from torch import Tensor

from harmon.model.transfer import sent
from harmon.training.data import ChatBatch, ImageBatch
from harmon.training.mixture import Mixture
from harmon.training.stage import Task


class SourceLosses:
    """Loss sums and counts of each of a mixture's `lines` over this worker's rows, on `device`."""

    def __init__(self, mixture: Mixture, tasks: list[Task], device: torch.device) -> None:
        self._names = [(task, name) for task in tasks for name in mixture.lines(task)]
        self._first = {task: [one for one, _ in self._names].index(task) for task in tasks}
        self._step = torch.zeros(2, len(self._names), dtype=torch.float64, device=device)
        self._sums = torch.zeros_like(self._step)

    def add(self, task: Task, batch: ImageBatch | ChatBatch, per_sample: Tensor) -> None:
        """Take in the rows of one batch of the step, whose losses are `per_sample` [B]."""
        if batch.lines is None:
            return
        device = self._step.device
        places = sent(batch.lines + self._first[task], device)
        counts = sent(batch.counts, device)
        self._step.index_add_(1, places, torch.stack([per_sample.detach().double(), counts]))

    def end_step(self, skip: Tensor) -> None:
        """Count the step, unless the guard's word `skip` is above 0."""
        self._sums += self._step.masked_fill(skip > 0, 0.0)
        self._step.zero_()

    def told(self) -> dict[Task, dict[str, float]]:
        """The mean losses since this was last asked, over all workers, who ask together; sources without a row are
        left out.
        """
        if dist.is_initialized():
            dist.all_reduce(self._sums)
        losses: dict[Task, dict[str, float]] = {}
        for (task, name), total, count in zip(self._names, *self._sums.tolist(), strict=True):
            if count:
                losses.setdefault(task, {})[name] = total / count
        self._sums.zero_()
        return losses
