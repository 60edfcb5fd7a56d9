"""What moves in a stage and how fast: parameter groups, the learning-rate schedule, and the gradient of all."""

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from harmon.model.harmon import has_weight_decay, part_of
from harmon.training.stage import PARTS, StageConfig

NEVER_TRAINED = ("mar.class_emb.weight",)  # carried for the released checkpoints; no loss reads it
COPY, SHARD = "copy", "shard"  # axes of the mesh that sharded weights lie on


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


class Gradient:
    """The gradient of all trained parameters: one vector, of which each parameter's gradient is a part.

    Whole weights: workers add theirs in a single reduction, in whose last place the loss goes along. Sharded weights
    (`mesh`): the vector is of this worker's shards, FSDP adds to it with every micro-batch, and the copies of a shard
    (HSDP) add theirs in one reduction a step.
    """

    def __init__(self, trained: dict[str, nn.Parameter], mesh: DeviceMesh | None = None) -> None:
        parts = [local(parameter.detach()) for parameter in trained.values()]
        size = sum(part.numel() for part in parts)
        self._mesh = mesh
        self._sent = torch.zeros(size + 1, dtype=parts[0].dtype, device=parts[0].device)
        self.vector = self._sent[:size]
        start = 0
        for parameter, part in zip(trained.values(), parts, strict=True):
            # there from the start: AdamW would leave one out that no loss of a step reads
            parameter.grad = _alike(self.vector[start : start + part.numel()].view_as(part), parameter)
            start += part.numel()

    def zero(self) -> None:
        """Forget the last step's gradient."""
        self._sent.zero_()

    def reduce(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Add what the workers have: (the step's loss, the gradient's norm), scalars that are equal on all.

        A sum is exact, because each worker divided by the step's global counts.
        """
        if self._mesh is None:
            self._sent[-1] = loss
            if dist.is_initialized():
                dist.all_reduce(self._sent)
            return self._sent[-1], torch.linalg.vector_norm(self.vector)
        copies = 1
        if self._mesh.ndim == 2:
            copies = self._mesh[COPY].size()
            dist.all_reduce(self.vector, group=self._mesh.get_group(COPY))
        both = torch.stack([loss.to(self.vector.dtype), torch.linalg.vector_norm(self.vector).square() / copies])
        dist.all_reduce(both)
        return both[0], both[1].sqrt()

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradient, whose norm is `norm`, to a norm of at most `limit`."""
        self.vector.mul_((limit / (norm + 1e-6)).clamp(max=1.0))  # 1e-6 as in torch.nn.utils.clip_grad_norm_


def _alike(values: Tensor, parameter: nn.Parameter) -> Tensor:
    """`values`, sharing their memory, as the same shard of a tensor that `parameter` is."""
    if not isinstance(parameter, DTensor):
        return values
    return DTensor.from_local(
        values,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
