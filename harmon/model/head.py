"""The diffusion head: an MLP that predicts a token's noise from the decoder's output at its position.

Module and parameter names are those of the released checkpoints (`mar.diffloss.net.*`).

Shape letters: R rows (any leading shape), C token channels, W head width, Z decoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harmon.model.config import TRAIN_STEPS, HeadConfig
from harmon.model.diffusion import bound_rows, diffuse, mse_rows, tables

FREQUENCIES = 256  # width of the sinusoid that a timestep becomes
_MAX_PERIOD = 10000.0
_EPS = 1e-6


class TimestepEmbedding(nn.Module):
    """A timestep as a sinusoid (cosines first), through a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def reset_parameters(self) -> None:
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Timesteps [R] -> [R, W]."""
        half = FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps.float().unsqueeze(-1) * torch.exp(-math.log(_MAX_PERIOD) * exponent)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        embedded: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return embedded


class ResidualBlock(nn.Module):
    """An MLP whose normalised input is shifted and scaled, and whose output is gated, by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [R, W], its modulation [R, 3W] (`DiffusionMlp.modulations`) -> [R, W]."""
        shift, scale, gate = modulation.chunk(3, -1)
        out: Tensor = x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)
        return out


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [R, W], its modulation [R, 2W] -> [R, 2C]."""
        shift, scale = modulation.chunk(2, -1)
        out: Tensor = self.linear(self.norm_final(x) * (1 + scale) + shift)
        return out


class DiffusionMlp(nn.Module):
    """(noisy token, timestep, decoder output) -> (epsilon, variance range)."""

    def __init__(self, config: HeadConfig, channels: int, decoder_width: int) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(config.width)
        self.cond_embed = nn.Linear(decoder_width, config.width)
        self.input_proj = nn.Linear(channels, config.width)
        self.res_blocks = nn.ModuleList(ResidualBlock(config.width) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.width, 2 * channels)

    def reset_parameters(self) -> None:
        """Zero every modulation and the output, so that blocks start as the identity and the head as zero."""
        self.time_embed.reset_parameters()
        blocks = [*self.res_blocks, self.final_layer]
        for linear in [block.adaLN_modulation[1] for block in blocks] + [self.final_layer.linear]:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, noisy: Tensor, timesteps: Tensor, embedded: Tensor) -> Tensor:
        """Tokens [R, C], timesteps [R] and `cond_embed(z)` [R, W], all broadcasting -> [R, 2C].

        The condition arrives embedded because one position is denoised many times.
        """
        return self.predict(noisy, self.modulations(self.time_embed(timesteps) + embedded))

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """What a condition [R, W], timestep and position together, makes of each block and of the last layer.

        It depends on no token: two thirds of the head's products can be done before a chain begins.
        """
        activated = F.silu(condition)
        return [layer.adaLN_modulation[1](activated) for layer in (*self.res_blocks, self.final_layer)]

    def predict(self, noisy: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Tokens [R, C] under the `modulations` of their condition -> [R, 2C]."""
        *inner, last = modulations
        x = self.input_proj(noisy.to(last.dtype))
        for block, modulation in zip(self.res_blocks, inner):
            x = block(x, modulation)
        out: Tensor = self.final_layer(x, last)
        return out


class DiffusionHead(nn.Module):
    """The MLP with its training loss; `net` is the name the checkpoints use."""

    def __init__(self, config: HeadConfig, channels: int, decoder_width: int) -> None:
        super().__init__()
        self.net = DiffusionMlp(config, channels, decoder_width)

    def loss_rows(self, z: Tensor, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Loss of each row, [.., R] in float32 (float64 where z is).

        z [R, Z] and clean [R, C] are one per position; timesteps [.., R] and noise [.., R, C] may repeat them
        over leading axes, and the condition is embedded once for all repeats.
        """
        steps = tables(str(TRAIN_STEPS), z.device).at(timesteps)
        wide = torch.promote_types(z.dtype, torch.float32)
        clean, noise = clean.to(wide), noise.to(wide)
        noisy = diffuse(steps, clean, noise)
        output = self.net(noisy, timesteps, self.net.cond_embed(z)).to(wide)
        epsilon, _ = output.chunk(2, -1)
        return mse_rows(epsilon, noise) + bound_rows(steps, clean, noisy, output)
