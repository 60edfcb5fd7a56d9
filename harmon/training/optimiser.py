"""What moves in a stage and how fast: parameter groups, the learning-rate schedule, and the gradient of all."""

import math
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harmon.model.harmon import has_weight_decay, part_of
from harmon.training.stage import PARTS, StageConfig

NEVER_TRAINED = ("mar.class_emb.weight",)  # carried for the released checkpoints; no loss reads it


def trained_parameters(model: nn.Module, stage: StageConfig) -> dict[str, nn.Parameter]:
    """The parameters that `stage` moves, by name; all others stop requiring gradients."""
    trained = {}
    for name, parameter in model.named_parameters():
        moves = stage.learning_rate.of(part_of(name)) is not None and name not in NEVER_TRAINED
        parameter.requires_grad_(moves)
        if moves:
            trained[name] = parameter
    return trained


def make_optimiser(stage: StageConfig, trained: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with one group for each part and for decayed or undecayed parameters (release: no decay of
    biases, of one-dimensional parameters and of the whole diffusion head). A group's `peak` is its part's
    learning rate.
    """
    groups = []
    for part in PARTS:
        for decays in (True, False):
            members = {
                name: parameter
                for name, parameter in trained.items()
                if part_of(name) == part and has_weight_decay(name, parameter) == decays
            }
            if members:
                decay = stage.weight_decay if decays else 0.0
                rate = stage.learning_rate.of(part)
                groups.append({"params": list(members.values()), "part": part, "peak": rate, "weight_decay": decay})
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=stage.betas, fused=True)
    for parameter in trained.values():  # as AdamW's first step makes them; a checkpoint is read into them before it
        optimiser.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser


def rate_factor(stage: StageConfig, step: int) -> float:
    """Factor of every peak rate at train step `step`: linear warm-up from `warmup_start`, then cosine to
    0.
    """
    warmup = round(stage.steps * stage.warmup_share)
    if step < warmup:
        return stage.warmup_start + (1 - stage.warmup_start) * step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (stage.steps - warmup)))


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group's rate to `factor` times its peak; returns the rate of each part."""
    for group in optimiser.param_groups:
        group["lr"] = factor * group["peak"]
    return {group["part"]: group["lr"] for group in optimiser.param_groups}


def local(tensor: Tensor) -> Tensor:
    """This worker's own part of a sharded tensor, sharing its memory; any other tensor as it is."""
    part: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return part


class Gradient(Protocol):
    """The gradient of all trained parameters over all workers."""

    def zero(self) -> None:
        """Forget the last step's gradient."""

    def reduce(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Add what the workers have: (the step's loss, the gradient's norm), scalars that are equal on all.

        A sum is exact, because each worker divided by the step's global counts.
        """

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradient, whose norm is `norm`, to a norm of at most `limit`."""


class FlatGradient:
    """One vector that holds the gradients of all trained parameters, so that workers add theirs in a single
    reduction. Its last place is the loss, which thereby needs none of its own.
    """

    def __init__(self, trained: dict[str, nn.Parameter]) -> None:
        parameters = list(trained.values())
        first = parameters[0]
        size = sum(p.numel() for p in parameters)
        self._sent = torch.zeros(size + 1, dtype=first.dtype, device=first.device)
        self.vector = self._sent[:size]
        start = 0
        for parameter in parameters:
            parameter.grad = self.vector[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def zero(self) -> None:
        """Forget the last step's gradient."""
        self._sent.zero_()

    def reduce(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """As `Gradient.reduce`."""
        self._sent[-1] = loss
        if dist.is_initialized():
            dist.all_reduce(self._sent)
        return self._sent[-1], torch.linalg.vector_norm(self.vector)

    def clip(self, norm: Tensor, limit: float) -> None:
        """As `Gradient.clip`."""
        self.vector.mul_(_shrinking(norm, limit))


class ShardedGradient:
    """Gradients that lie with their sharded parameters and were added by FSDP on their way there.

    `copies` workers hold the same shard (HSDP's replicas; 1 under FSDP).
    """

    def __init__(self, trained: dict[str, nn.Parameter], copies: int = 1) -> None:
        self.parameters = list(trained.values())
        self.copies = copies
        for parameter in self.parameters:  # or AdamW would leave one out that no loss of this step reads
            parameter.grad = torch.zeros_like(parameter)

    def zero(self) -> None:
        """Forget the last step's gradient."""
        torch._foreach_zero_(self._shards())

    def reduce(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """As `Gradient.reduce`."""
        square = torch.stack(torch._foreach_norm(self._shards())).square().sum() / self.copies
        both = torch.stack([loss.to(square.dtype), square])
        dist.all_reduce(both)
        return both[0], both[1].sqrt()

    def clip(self, norm: Tensor, limit: float) -> None:
        """As `Gradient.clip`."""
        torch._foreach_mul_(self._shards(), _shrinking(norm, limit))

    def _shards(self) -> list[Tensor]:
        return [local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]


def _shrinking(norm: Tensor, limit: float) -> Tensor:
    return (limit / (norm + 1e-6)).clamp(max=1.0)  # 1e-6 as in torch.nn.utils.clip_grad_norm_
