"""VQGAN's encoder and codebook: pictures as vectors of a learned code (Esser et al., arXiv 2012.09841).

What the paper's Table 6 calls VQGAN, after its reference [26]. The published model of stride 16 with 16,384 codes has
the encoder of the latent diffusion autoencoder, which came after it: base width 128, widths 1, 1, 2, 2, 4 times that,
two residual blocks a level, attention at 16 x 16, and 256 channels in place of moments. Names are those of its
checkpoint (`encoder.*`, `quant_conv.*`, `quantize.embedding.weight`). Its decoder, which draws, is not needed here.

Shape letters: B batch, Z encoder channels, C code width, K codes, h w map.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from harmon.model.autoencoder import Encoder, KlConfig
from pipelines.errors import HarmonError


class VqganConfig(BaseModel):
    """Sizes; the defaults are those of the published f16 with 16,384 codes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_channels: int = Field(default=128, gt=0)
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = Field(default=2, gt=0)
    encoder_channels: int = Field(default=256, gt=0)
    code_width: int = Field(default=256, gt=0)
    codes: int = Field(default=16384, gt=0)

    @property
    def convolutions(self) -> KlConfig:
        """The same sizes as the autoencoder's encoder takes them."""
        return KlConfig(
            base_channels=self.base_channels,
            channel_multipliers=self.channel_multipliers,
            res_blocks=self.res_blocks,
        )


class Codebook(nn.Module):
    """The code's vectors, under the published name."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)


class Vqgan(nn.Module):
    """Pictures as the codebook's vectors; used frozen."""

    name = "vqgan"

    def __init__(self, config: VqganConfig | None = None, name: str = name) -> None:
        super().__init__()
        self.config, self.name = config or VqganConfig(), name
        self.encoder = Encoder(self.config.convolutions, self.config.encoder_channels)
        self.quant_conv = nn.Conv2d(self.config.encoder_channels, self.config.code_width, 1)
        self.quantize = Codebook(self.config.codes, self.config.code_width)

    @classmethod
    def from_file(cls, path: str | Path) -> Vqgan:
        """Read what `save` wrote; HarmonError where the file is no VQGAN."""
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                model = cls(VqganConfig.model_validate_json(told["config"]), told.get("name", cls.name))
                model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, ValidationError, RuntimeError) as error:
            raise HarmonError(
                f"{path} is no VQGAN ({str(error).splitlines()[0]}); write one with Vqgan.save."
            ) from error
        return model

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, the sizes in the metadata."""
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, path, metadata={"name": self.name, "config": self.config.model_dump_json()})

    @property
    def stride(self) -> int:
        return self.config.convolutions.stride

    @property
    def channels(self) -> int:
        return self.config.code_width

    def side(self, px: int) -> int:
        """Rows and columns of the map of a picture of `px` a side."""
        return px // self.stride

    def codes(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> numbers of the nearest codes, int64 [B, h, w]."""
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise HarmonError(f"a picture of {height} x {width} pixels needs sides that are multiples of {self.stride}")
        x_BhwC = self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)
        table_KC = self.quantize.embedding.weight
        # the squared distance without the part that all codes share
        distance_BhwK = table_KC.square().sum(1) - 2 * (x_BhwC @ table_KC.T)
        nearest: Tensor = distance_BhwK.argmin(-1)
        return nearest

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> the vectors of the nearest codes, [B, C, h, w] float32."""
        vectors: Tensor = self.quantize.embedding(self.codes(images)).permute(0, 3, 1, 2)
        return vectors.contiguous()
