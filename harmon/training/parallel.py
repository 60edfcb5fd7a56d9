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
from harmon.model.harmon import Harmon, LossSum
from harmon.model.language import read_layer
from harmon.training.execution import Execution
from harmon.training.optimiser import COPY, NEVER_TRAINED, SHARD
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


def prepare(model: Harmon, execution: Execution) -> DeviceMesh | None:
    """Recompute, compile and shard `model`, in place, as `execution` says; returns the mesh of a sharded one.

    Its parameters must be frozen or not already, and lie on the training device. One process alone shards nothing.

    Raises:
        ConfigurationError: the workers do not fit the shards, or the layout is still to be chosen.
    """
    if execution.parallel == "auto":
        raise ConfigurationError(
            "execution.parallel: auto is chosen when a recipe makes the job; name ddp, fsdp or hsdp."
        )
    if execution.recompute != "none":
        _recompute(model, execution.recompute)
    if execution.compile:
        compile_regions(model, graphs=False)
    if execution.parallel == "ddp" or not dist.is_initialized():
        return None
    mesh = _mesh(model.device.type, execution)
    shards = mesh[SHARD]  # whose gradients are added across copies once a step, by `Gradient`
    for layer in model.llm.model.layers:
        if not hasattr(layer, "read"):
            layer.read = partial(read_layer, layer)
        fully_shard(layer, mesh=shards)
        register_fsdp_forward_method(layer, "read")
    for block in (*model.mar.encoder_blocks, *model.mar.decoder_blocks):
        fully_shard(block, mesh=shards)
    fully_shard(model.mar.diffloss, mesh=shards)
    register_fsdp_forward_method(model.mar.diffloss, "loss_rows")
    never = {parameter for name, parameter in model.named_parameters() if name in NEVER_TRAINED}
    fully_shard(model, mesh=shards, ignored_params=never)
    _register_losses(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # workers divide by the step's global counts themselves
            module.set_force_sum_reduction_for_comms(True)
    return mesh


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


def _register_losses(model: Harmon) -> None:
    """Make the losses forward methods of FSDP, which sees none of their arguments: it would move tensors that lie on
    the CPU on purpose to the device, and wait for each.
    """
    register_fsdp_forward_method(model, "gathered")

    def gathering(method: Callable[..., LossSum]) -> Callable[..., LossSum]:
        return lambda *given, **named: model.gathered(partial(method, *given, **named))

    for name in ("text_to_image_loss", "image_to_text_loss"):
        setattr(model, name, gathering(getattr(model, name)))


def _mesh(device: str, execution: Execution) -> DeviceMesh:
    world, group = dist.get_world_size(), execution.shard_workers
    if execution.parallel == "fsdp":
        return init_device_mesh(device, (world,), mesh_dim_names=(SHARD,))
    if group is None or world % group:
        raise ConfigurationError(
            f"hsdp over {world} workers needs shard_workers that divides them, not {group}; the GPUs of a machine, say."
        )
    return init_device_mesh(device, (world // group, group), mesh_dim_names=(COPY, SHARD))


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
