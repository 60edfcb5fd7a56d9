"""What torch's own tracker says a train step takes, with fake tensors: nothing is computed and no memory is filled.

The tensors are the CPU's, since backward on fake CUDA tensors needs a GPU. Four operations are put in place as CUDA has
them: fused attention, fused RMS norm, drop-out with a mask of one byte, and layer norm in float32 under autocast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from harmon.model.config import HarmonConfig
from harmon.model.diffusion import tables
from harmon.model.gradient import ScaleGradient
from harmon.model.harmon import Harmon
from harmon.model.language import read_causally
from harmon.training import parallel
from harmon.training.execution import Execution
from harmon.training.memory import Lengths
from harmon.training.optimiser import SHARD, Gradient, local, make_optimiser, trained_parameters
from harmon.training.parallel import prepare
from harmon.training.stage import StageConfig, Task

_attention, _layer_norm = F.scaled_dot_product_attention, F.layer_norm
_AFTER = "register_post_accumulate_grad_hook"


def tracked_peak(
    config: HarmonConfig,
    stage: StageConfig,
    task: Task,
    rows: int,
    *,
    bf16: bool,
    lengths: Lengths,
    shards: int = 1,
    recompute: Literal["none", "selective", "full"] = "none",
) -> tuple[float, float]:
    """Bytes at the peak of a train step on one worker, and those of them that are no parameter, gradient or moment.

    With `shards`, the worker is one of so many that run FSDP as `harmon.training.parallel` sets it up.
    """
    tables.cache_clear()  # they may be of another fake mode
    execution = Execution(parallel="fsdp" if shards > 1 else "ddp", recompute=recompute)
    with _workers(shards), FakeTensorMode(), _as_on_cuda():
        model = Harmon(config).train()
        trained_parameters(model, stage)
        mesh = prepare(model, execution)
        trained = trained_parameters(model, stage)
        optimiser = make_optimiser(stage, trained)
        gradient = Gradient(trained, mesh)
        optimiser.step()
        tracker = MemTracker()
        tracker.track_external(model, optimiser, gradient.vector)
        state = sum(local(value.detach()).nbytes for value in model.parameters())
        state += 3 * sum(local(value.detach()).nbytes for value in trained.values())
        inputs = torch.randn(rows, config.mar.latent_channels, *[stage.px // config.latent_stride] * 2)
        with tracker:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                draw = _drawing if task == "text2image" else _seeing
                loss = draw(model, stage, inputs if task != "text" else None, rows, lengths)
            loss.backward()
            optimiser.step()
    tables.cache_clear()
    (peak,) = (kinds for device, kinds in tracker.get_tracker_snapshot("peak").items() if device.type == "cpu")
    (total,) = (size for kind, size in peak.items() if kind == "Total")
    return float(total), float(total - state)


@contextmanager
def _workers(number: int) -> Iterator[None]:
    """A group of so many workers, of which only this one is there; 1: no group."""
    if number == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    mesh = init_device_mesh("cpu", (number,), mesh_dim_names=(SHARD,))  # under fake tensors it could not be made
    try:
        with mock.patch.object(parallel, "_mesh", lambda *given: mesh):
            yield
    finally:
        dist.destroy_process_group()


def _drawing(model: Harmon, stage: StageConfig, latents: Tensor, rows: int, lengths: Lengths) -> Tensor:
    positions = model.config.tokens(*latents.shape[2:])
    masked = round(positions * (stage.mask_ratio.low + stage.mask_ratio.high) / 2)
    times = torch.zeros(model.config.head.batch_mul, rows, positions, dtype=torch.int64)
    seen = (positions + model.config.mar.buffer_size) * lengths.picture
    ids = torch.zeros(rows, lengths.prompt + seen, dtype=torch.int64)
    noise = torch.zeros(*times.shape, model.config.mar.token_channels)
    order = torch.zeros(rows, positions, dtype=torch.int64)
    given = latents, ids, ids == 0, order, masked, times, noise
    return model.text_to_image_loss(*given, pictured=lengths.picture).total


def _seeing(model: Harmon, stage: StageConfig, latents: Tensor | None, rows: int, lengths: Lengths) -> Tensor:
    """`Harmon.image_to_text_loss` where the places of slots and labels are known: fake tensors have no values."""
    slots, labelled = 0, lengths.text - lengths.question
    if latents is not None:
        slots, labelled = model.config.tokens(*latents.shape[2:]) + model.config.mar.buffer_size, lengths.labelled
    ids = torch.zeros(rows, slots + lengths.question + labelled, dtype=torch.int64)
    run = partial(_read, model, latents, ids, labelled)
    return model.gathered(run)  # type: ignore[arg-type]


def _read(model: Harmon, latents: Tensor | None, ids: Tensor, labelled: int) -> Tensor:
    rows = len(ids)
    x = model.llm.model.embed_tokens(ids)
    if latents is not None:
        _, image = model.visual_features(*model.to_tokens(latents))
        x = x.masked_scatter((ids < 0).unsqueeze(-1), ScaleGradient.apply(image, 0.1).to(x.dtype))
    hidden = read_causally(model.llm.model, x, read_BR=torch.zeros(rows, labelled, dtype=torch.int64))
    logits = model.llm.lm_head(hidden.flatten(0, 1))
    return F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.int64), reduction="none").sum()


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    with (
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
        mock.patch.object(F, "layer_norm", _layer_norm_in_float),
        mock.patch.object(F, "rms_norm", lambda x, _, weight, eps: _FusedRmsNorm.apply(x, weight, eps)),
        mock.patch.object(F, "dropout", _native_dropout),
        mock.patch.object(Tensor, "register_hook", _where_it_can_be(Tensor.register_hook)),
        mock.patch.object(Tensor, _AFTER, _where_it_can_be(getattr(Tensor, _AFTER))),
    ):
        yield


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    if attn_mask is not None:  # the language model's last layer: one of many, with few queries
        return _attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, **options)
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (one.to(torch.bfloat16) for one in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]


def _layer_norm_in_float(x: Tensor, *rest, **options) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return _layer_norm(x.float(), *rest, **options)


def _native_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _where_it_can_be(register: Callable) -> Callable:
    """The tracker hooks every parameter; torch refuses that of frozen ones, which have no gradient to watch."""

    def hook(tensor: Tensor, called: Callable) -> object:
        return register(tensor, called) if tensor.requires_grad else mock.Mock()

    return hook


class _FusedRmsNorm(torch.autograd.Function):
    """Keeps its input and one number a row, as the CUDA kernel does."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, x[..., :1].clone())
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None
