"""KL-16: the frozen convolutional autoencoder whose latents Harmon reads and writes.

The latent diffusion autoencoder (Rombach et al., arXiv 2112.10752) at stride 16 as MAR released it
(kl16.ckpt); module and parameter names are those of that file.

Shape letters: B batch, C latent channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import HarmonError

_GROUPS = 32
_EPS = 1e-6
_ATTENTION_SIDE = 16


class KlConfig(BaseModel):
    """Sizes of the autoencoder; the defaults are the released ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    """Residual blocks per encoder level; the decoder has one more."""
    latent_channels: int = 16
    scale: float = 0.2325
    """Factor that brings the latents to about unit deviation (MAR's released code)."""

    @property
    def stride(self) -> int:
        """Pixels on a side of one latent position: every level but the last halves the sides."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    def attends(self, level: int) -> bool:
        """Whether an encoder level has attention: the one that is 16 x 16 for a 256 px image."""
        return 256 >> level == _ATTENTION_SIDE

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)


class GroupNorm(nn.GroupNorm):
    """32 groups. A group of a single value, as a 16 px image has with 32 channels, becomes the bias: PyTorch's
    module refuses it, its kernel does not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        out: Tensor = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + hidden
        return out


class AttentionBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = GroupNorm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(mixed)
        return out


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if the level has it; then resampling."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        *,
        attention: bool = False,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * (blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(width, outputs) for width in widths)
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(blocks if attention else 0))
        if down:
            self.downsample = Downsample(outputs)
        if up:
            self.upsample = Upsample(outputs)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Image -> `outputs` channels (the moments); the level that is 16 x 16 for a 256 px image attends, whatever the
    actual size.
    """

    def __init__(self, config: KlConfig, outputs: int) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                inputs,
                outputs,
                config.res_blocks,
                attention=config.attends(i),
                down=i < len(widths) - 1,
            )
            for i, (inputs, outputs) in enumerate(zip((config.base_channels, *widths), widths))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Latents -> image. `up` counts levels as the encoder does: its last is the first to run."""

    def __init__(self, config: KlConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(inputs, outputs, config.res_blocks + 1, up=i > 0)
            for i, (inputs, outputs) in enumerate(zip((*widths[1:], widths[-1]), widths))
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(list(self.up)):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class KlAutoencoder(nn.Module):
    """The autoencoder; used frozen, and deterministic: a latent is the mode of its posterior."""

    name = "kl-16"
    layout = torch.channels_last
    """How pictures lie in memory: convolutions run about a seventh faster over values of a pixel side by side."""

    def __init__(self, config: KlConfig | None = None) -> None:
        super().__init__()
        self.config = config or KlConfig()
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, 2 * channels)
        self.decoder = Decoder(self.config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    @classmethod
    def from_file(cls, path: str | Path) -> KlAutoencoder:
        """Read what `save` wrote; HarmonError where the file is no autoencoder."""
        try:
            with safe_open(path, "pt") as file:
                config = KlConfig.model_validate_json((file.metadata() or {})["config"])
                state = {key.removeprefix("vae."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, ValidationError) as error:
            raise HarmonError(f"{path} is no autoencoder ({error}); write one with KlAutoencoder.save") from error
        autoencoder = cls(config)
        autoencoder.load_released(state)
        return autoencoder

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, the sizes in the metadata."""
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, path, metadata={"name": self.name, "config": self.config.model_dump_json()})

    @property
    def stride(self) -> int:
        return self.config.stride

    @property
    def channels(self) -> int:
        return self.config.latent_channels

    def side(self, px: int) -> int:
        """Rows and columns of the latents of a picture of `px` a side."""
        return px // self.stride

    def moments(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> posterior mean and log variance [B, 2 C, H / stride, W / stride]."""
        if images.shape[-2] % self.stride or images.shape[-1] % self.stride:
            raise HarmonError(
                f"an image of {images.shape[-2]} x {images.shape[-1]} pixels cannot be encoded; "
                f"both sides must be multiples of {self.stride}"
            )
        out: Tensor = self.quant_conv(self.encoder(images.contiguous(memory_format=self.layout)))
        return out

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1] -> scaled latents [B, C, H / stride, W / stride] float32."""
        weight_type = self.quant_conv.weight.dtype
        mode: Tensor = self.moments(images.to(weight_type)).chunk(2, 1)[0].float() * self.config.scale
        return mode.contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> float32 images [B, 3, h * stride, w * stride], not clamped."""
        unscaled = (latents.float() / self.config.scale).to(self.post_quant_conv.weight.dtype)
        out: Tensor = self.decoder(self.post_quant_conv(unscaled.contiguous(memory_format=self.layout)))
        return out.float().contiguous()

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load `kl16.ckpt`'s weights, of any float type; its other keys (the training loss's) are left out.

        HarmonError names missing keys.
        """
        own = self.state_dict()
        missing = [key for key in own if key not in state]
        if missing:
            raise HarmonError(f"the autoencoder's weights lack {len(missing)} keys, the first {missing[0]}")
        wrong = [key for key in own if state[key].shape != own[key].shape]
        if wrong:
            raise HarmonError(
                f"the autoencoder's weight {wrong[0]} has shape {tuple(state[wrong[0]].shape)} in place of "
                f"{tuple(own[wrong[0]].shape)}"
            )
        with torch.no_grad():
            self.load_state_dict({key: state[key] for key in own})
