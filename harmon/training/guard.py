"""The guard between a gradient and the weights: a step whose loss or gradient cannot be right is not taken.

All of it runs on the training device and nothing waits for it: AdamW's fused kernel reads the verdict there, and the
host hears of it with the next line of metrics. What is not finite never passes. With `sigmas`, neither does a loss or
a gradient norm that lies further above its recent values than they scatter (as OLMo's SkipStepAdamW does).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from harmon.training.execution import GuardConfig


class Guard:
    """Recent losses and gradient norms, and the verdict on the next ones.

    `state` is what a checkpoint keeps. It is equal on all workers, bit by bit, and so is every verdict: they judge
    the numbers of `largest`.
    """

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        self.config = config
        self.state = {"in_a_row": torch.zeros((), dtype=torch.int64, device=device)}  # steps skipped last
        if config.sigmas is not None:  # without, the window is no part of what is trained, nor of a checkpoint
            self.state |= {
                "recent": torch.zeros(2, config.window, dtype=torch.float64, device=device),  # losses, norms
                "seen": torch.zeros((), dtype=torch.int64, device=device),  # finite steps so far
            }
        self._spent = torch.zeros((), dtype=torch.int64, device=device)  # in no checkpoint: training ends before one

    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 (float32 scalar) where the step with this loss and gradient norm is to be skipped, else 0.

        Once `patience` steps in a row were skipped, every further one is: the host, which hears of it with the next
        line of metrics, finds the weights as they were.
        """
        values = torch.stack([loss.detach(), norm.detach()]).double()
        finite = torch.isfinite(values).all()
        skip = ~finite
        if self.config.sigmas is not None:
            skip = skip | self._is_spike(values)
            self._remember(values, finite)
        self.state["in_a_row"] = (self.state["in_a_row"] + 1) * skip
        self._spent += (self._spent > 0) | (self.state["in_a_row"] >= self.config.patience)
        return (skip | (self._spent > 0)).float()

    def spent(self) -> int:
        """Train steps since patience ended, with the one in which it did; 0 while it lasts. Waits for the device."""
        return int(self._spent)

    def _is_spike(self, values: Tensor) -> Tensor:
        assert self.config.sigmas is not None
        window = self.config.window
        known = self.state["seen"].clamp(max=window)
        real = torch.arange(window, device=known.device) < known
        recent = self.state["recent"]
        count = known.clamp(min=2)
        mean = recent.sum(1) / count  # places that are not known yet hold 0
        spread = ((recent - mean.unsqueeze(1)).square() * real).sum(1) / (count - 1)
        return (known >= window // 2) & (values > mean + self.config.sigmas * spread.sqrt()).any()

    def _remember(self, values: Tensor, finite: Tensor) -> None:
        """Write finite values over the oldest ones: skipped spikes too, or a new level would be skipped for ever."""
        place = torch.arange(self.config.window, device=values.device) == self.state["seen"] % self.config.window
        self.state["recent"] = torch.where(place & finite, values.unsqueeze(1), self.state["recent"])
        self.state["seen"] = self.state["seen"] + finite


def largest(loss: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """The largest loss and gradient norm that any worker brings, infinite where one is not finite; all call it.

    Each worker takes the norm of the reduced gradient itself. Should two of them round it differently, one would skip
    a step, or shrink its gradient, otherwise than the other, and their weights would part.
    """
    values = torch.stack([loss.detach().double(), norm.detach().double()])
    values = torch.where(torch.isfinite(values), values, torch.inf)  # a maximum may lose what is not a number
    if dist.is_initialized():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values[0].to(loss.dtype), values[1].to(norm.dtype)
