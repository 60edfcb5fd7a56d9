"""An exponential moving average of the trained weights, beside them and on their device."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
    def update(self) -> None:
        """Take in the weights as they are."""
        torch._foreach_lerp_(self._averages(), self._weights(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside this block, and its own weights again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(self._averages(), self._weights(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _averages(self) -> list[Tensor]:
        return [local(tensor) for tensor in self.tensors.values()]

    def _weights(self) -> list[Tensor]:
        return [local(parameter.detach()) for parameter in self.trained.values()]
