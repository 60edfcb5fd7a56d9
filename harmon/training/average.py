"""An exponential moving average of the trained weights, beside them and on their device."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harmon.training.optimiser import local


class Average:
    """`decay` of the old average and the rest of the weights after every train step, in the weights' own type.

    The paper's recipes have none. `tensors` is what a checkpoint keeps, under the parameters' names.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.trained = dict(trained)
        self.tensors = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, skip: Tensor | None = None) -> None:
        """Take in the weights as they are after a step; not where the step was skipped, `skip` (on the device, of which
        the host reads nothing) being above 0.
        """
        averages = self._averages()
        if skip is None:
            torch._foreach_lerp_(averages, self._weights(), 1 - self.decay)
            return
        taken = torch.where(skip > 0, 0.0, torch.full_like(skip, 1 - self.decay, dtype=torch.float64))
        share = {dtype: taken.to(dtype) for dtype in {average.dtype for average in averages}}
        torch._foreach_lerp_(averages, self._weights(), [share[average.dtype] for average in averages])

    def _averages(self) -> list[Tensor]:
        return [local(tensor) for tensor in self.tensors.values()]

    def _weights(self) -> list[Tensor]:
        return [local(parameter.detach()) for parameter in self.trained.values()]
