"""Which autoencoder a set of tensors is, its sizes, and an untrained one of those sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.patch_latent import PatchLatent
from pipelines.errors import HarmonError

Autoencoder = KlAutoencoder | PatchLatent


class PatchSizes(BaseModel):
    """Sizes of a patch latent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latent_channels: int = Field(gt=0)
    stride: int = Field(gt=0)
    """Pixels on a side of a patch."""


Sizes = KlConfig | PatchSizes


def autoencoder_name(sizes: Sizes) -> str:
    """What it calls itself: a stand-in says so."""
    return PatchLatent.name if isinstance(sizes, PatchSizes) else KlAutoencoder.name


def dump_sizes(sizes: Sizes) -> dict[str, Any]:
    """As JSON: `name` says which kind, beside the sizes."""
    return {"name": autoencoder_name(sizes), **sizes.model_dump(mode="json")}


def parse_sizes(values: Mapping[str, Any]) -> Sizes:
    """The inverse of `dump_sizes`. Raises pydantic's ValidationError (a ValueError) on anything else."""
    sizes = {key: value for key, value in values.items() if key != "name"}
    patch = values.get("name") == PatchLatent.name
    return PatchSizes.model_validate(sizes) if patch else KlConfig.model_validate(sizes)


def empty_autoencoder(sizes: Sizes) -> Autoencoder:
    """One of these sizes whose weights are still to be loaded."""
    if isinstance(sizes, PatchSizes):
        values = 3 * sizes.stride**2
        return PatchLatent(
            torch.zeros(values), torch.zeros(sizes.latent_channels, values), torch.ones(sizes.latent_channels)
        )
    return KlAutoencoder(sizes)


def kl_sizes(tensors: Mapping[str, Tensor], where: object) -> KlConfig:
    """Sizes of a KL autoencoder from the shapes under kl16.ckpt's names; the latents' scale is the released one.

    Raises:
        HarmonError: a tensor that tells a size is missing, or the widths are no multiples of the first.
    """
    try:
        base = tensors["encoder.conv_in.weight"].shape[0]
        levels = count_numbered(tensors, r"encoder\.down\.(\d+)\.")
        widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        channels = tensors["post_quant_conv.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise HarmonError(f"{where} holds no KL autoencoder: it lacks {error}; name kl16.ckpt.") from None
    blocks = count_numbered(tensors, r"encoder\.down\.0\.block\.(\d+)\.")
    if not levels or any(width % base for width in widths):
        raise HarmonError(f"{where} holds no KL autoencoder: its levels have {widths} channels over {base}.")
    return KlConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        res_blocks=blocks,
        latent_channels=channels,
    )


def count_numbered(names: Iterable[str], pattern: str) -> int:
    """How many numbered parts there are: one more than the largest number `pattern` finds in a name's start."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
