"""What moves in a stage and how fast: parameter groups, the learning-rate schedule, and one flat gradient."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
    return torch.optim.AdamW(groups, lr=0.0, betas=stage.betas, fused=True)


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


class FlatGradient:
    """One vector that holds the gradients of all trained parameters, so that workers add theirs in a single
    reduction.
    """

    def __init__(self, trained: dict[str, nn.Parameter]) -> None:
        parameters = list(trained.values())
        first = parameters[0]
        self.vector = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        start = 0
        for parameter in parameters:
            parameter.grad = self.vector[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def zero(self) -> None:
        """Forget the last step's gradient."""
        self.vector.zero_()

    def sum_over_workers(self) -> None:
        """Add the gradients of all workers: exact, because each worker divided by the step's global
        counts.
        """
        if dist.is_initialized():
            dist.all_reduce(self.vector)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient to a norm of at most `limit`; returns the norm before."""
        norm: Tensor = torch.linalg.vector_norm(self.vector)
        self.vector.mul_((limit / (norm + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch.nn.utils.clip_grad_norm_
        return norm
