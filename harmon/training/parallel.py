"""A model made ready for its hardware: copies or shards of it, recomputed activations, compiled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.attention.varlen  # defines the operation of packed rows, named below
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from harmon.model.compiled import compile_regions
from harmon.model.harmon import Harmon
from harmon.model.language import read_layer
from harmon.training.execution import Execution
from harmon.training.optimiser import NEVER_TRAINED, FlatGradient, Gradient, ShardedGradient
from harmon.training.stage import StageConfig
from pipelines.errors import ConfigurationError

_SAVED = (  # results that selective recomputation keeps: the matrix products and attention, most of the time
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
)


def prepare(model: Harmon, stage: StageConfig, execution: Execution) -> DeviceMesh | None:
    """Recompute, compile and shard `model`, in place, as `execution` says; returns the mesh of a sharded one.

    Its parameters must be frozen or not already, and lie on the training device. One process alone shards nothing.

    Raises:
        ConfigurationError: the workers do not fit the shards or the stage's blocks.
    """
    if execution.recompute != "none":
        _recompute(model, execution.recompute)
    if execution.compile:
        compile_regions(model, graphs=False)
    if execution.parallel == "ddp" or not dist.is_initialized():
        return None
    mesh = _mesh(model.device.type, stage, execution)
    for layer in model.llm.model.layers:
        if not hasattr(layer, "read"):
            layer.read = partial(read_layer, layer)
        fully_shard(layer, mesh=mesh)
        register_fsdp_forward_method(layer, "read")
    for block in (*model.mar.encoder_blocks, *model.mar.decoder_blocks):
        fully_shard(block, mesh=mesh)
    never = {parameter for name, parameter in model.named_parameters() if name in NEVER_TRAINED}
    fully_shard(model, mesh=mesh, ignored_params=never)
    for method in ("text_to_image_loss", "image_to_text_loss"):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # workers divide by the step's global counts themselves
            module.set_force_sum_reduction_for_comms(True)
    return mesh


def gradient_of(trained: dict[str, nn.Parameter], mesh: DeviceMesh | None) -> Gradient:
    """The gradient of a prepared model's trained parameters."""
    if mesh is None:
        return FlatGradient(trained)
    return ShardedGradient(trained, copies=mesh.size(0) if mesh.ndim == 2 else 1)


def reduce_now(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass adds the workers' gradients: on the last micro-batch of a step alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


@contextmanager
def at_hand(model: nn.Module) -> Iterator[None]:
    """The parameters of a sharded model that lie in none of its blocks are whole inside this block, for use outside
    its losses.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def _mesh(device: str, stage: StageConfig, execution: Execution) -> DeviceMesh:
    world, group = dist.get_world_size(), execution.shard_workers
    if stage.block_rows < world:
        raise ConfigurationError(
            f"{stage.stage}: blocks of {stage.block_rows} rows leave some of {world} workers without any, which "
            f"{execution.parallel} cannot train; use larger blocks, fewer workers or ddp."
        )
    if execution.parallel == "fsdp":
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    if group is None or world % group:
        raise ConfigurationError(
            f"hsdp over {world} workers needs shard_workers that divides them, not {group}; the GPUs of a machine, say."
        )
    return init_device_mesh(device, (world // group, group), mesh_dim_names=("copy", "shard"))


def _recompute(model: Harmon, what: Literal["selective", "full"]) -> None:
    kept: dict[str, Any] = {}
    if what == "selective":
        kept["context_fn"] = partial(create_selective_checkpoint_contexts, list(_SAVED))

    def again(function: Callable[..., Any]) -> Callable[..., Any]:
        return partial(checkpoint, function, use_reentrant=False, **kept)

    for layer in model.llm.model.layers:
        layer.read = again(partial(read_layer, layer))
    blocks = (*model.mar.encoder_blocks, *model.mar.decoder_blocks, *model.mar.diffloss.net.res_blocks)
    for block in blocks:
        block.forward = again(block.forward)
