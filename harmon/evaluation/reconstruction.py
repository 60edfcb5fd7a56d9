"""Zero-shot reconstruction: what MAR's decoder makes of its encoder's features of a picture it sees whole.

The paper's Figure A1 (third row) maps features "back to image contents using the MAR decoder", without training, and
does not say how. Two readings (EVALS.md section 4):

    visible    encode all positions, decode with every one of them visible, and draw each token with the diffusion head
               from the decoder's output at its own place
    left_out   part the positions into groups; hide one group at a time, draw its tokens as in generation from what is
               left, and put the groups together: no token is ever drawn from a feature of itself

The first asks the decoder for something it was never trained on (a loss stands at masked positions alone), the second
for what it was trained on with far fewer positions hidden. Drawing is stochastic: the noise follows from a seed.

Every result stands between the bound that the autoencoder sets, decoding the true latents, and a floor, the picture's
mean colour. LPIPS is not measured: its weights cannot be had here.

Shape letters: B pictures, N positions, M visible positions, P drawn positions, C token channels, Z decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from skimage.metrics import structural_similarity
from torch import Tensor

from harmon.evaluation.encoders import MarEncoder
from harmon.model.config import RESPACING
from harmon.model.diffusion import tables
from harmon.model.mar import Grid
from harmon.pictures import levels
from harmon.sampling import draw_tokens
from harmon.seeds import stream
from pipelines.settings import Settings

Reading = Literal["visible", "left_out"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Pixels = NDArray[np.uint8]


class ReconstructionConfig(Settings):
    """How tokens are drawn."""

    diffusion_steps: str = Field(default="100", pattern=RESPACING)
    temperature: float = Field(default=1.0, ge=0)
    clip_x0: float | None = Field(default=None, gt=0)
    """Bound on predicted clean tokens; None: the paper."""
    groups: int = Field(default=4, ge=2)
    """Of the reading `left_out`: each hides this part of the positions."""
    seed: int = 0


@dataclass(frozen=True)
class Closeness:
    """Of a picture to the original, over values of 0 to 255: peak signal to noise ratio in dB (infinite for equal
    pictures) and structural similarity (windows of 7 px, mean over colours)."""

    psnr: float
    ssim: float

    @classmethod
    def of(cls, picture: Pixels, original: Pixels) -> Closeness:
        """Of two pictures uint8 [H, W, 3] with sides of at least 7 px."""
        error = float(((picture.astype(np.float64) - original) ** 2).mean())
        psnr = float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
        return cls(psnr, float(structural_similarity(original, picture, channel_axis=2, data_range=255)))


@dataclass(frozen=True)
class Reconstructed:
    """One picture and what became of it: `made` holds pictures by name, `closeness` how near each is to `original`."""

    original: Pixels
    made: dict[str, Pixels]
    closeness: dict[str, Closeness]


def reconstruct(
    encoder: MarEncoder, images: Tensor, config: ReconstructionConfig, names: Sequence[str]
) -> list[Reconstructed]:
    """Pictures [B, 3, px, px] in [-1, 1] from their features, by both readings; also through the LLM where the encoder
    has one.

    The noise of a picture follows from the seed and its entry of `names`, so it does not depend on the others. `made`
    holds `flat` (the floor), `autoencoder` (the bound), the readings, and the readings with `, through the LLM`.
    """
    with torch.inference_mode():
        tokens_BNC, grid = encoder.tokens(images)
        made = {
            "flat": images.mean((2, 3), keepdim=True).expand_as(images),
            "autoencoder": _decoded(encoder, tokens_BNC, grid),
        }
        for reading in READINGS:
            drawn = redraw(encoder, tokens_BNC, grid, reading, config, names)
            made[reading] = _decoded(encoder, drawn, grid)
            if encoder.inform is not None:
                drawn = redraw(encoder, tokens_BNC, grid, reading, config, names, informed=True)
                made[f"{reading}, through the LLM"] = _decoded(encoder, drawn, grid)
    pixels = {name: levels(pictures).cpu().numpy() for name, pictures in made.items()}
    return [
        Reconstructed(
            original,
            {name: pictures[row] for name, pictures in pixels.items()},
            {name: Closeness.of(pictures[row], original) for name, pictures in pixels.items()},
        )
        for row, original in enumerate(levels(images).cpu().numpy())
    ]


def redraw(
    encoder: MarEncoder,
    tokens_BNC: Tensor,
    grid: Grid,
    reading: Reading,
    config: ReconstructionConfig,
    names: Sequence[str],
    informed: bool = False,
) -> Tensor:
    """Tokens [B, N, C] drawn anew at every position by one reading; `informed`: with what the LLM adds."""
    seeds = [stream(config.seed, "reconstruction", reading, name) % 2**63 for name in names]
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    device = tokens_BNC.device
    order_BN = torch.stack([torch.randperm(grid.positions, generator=draw) for draw in draws]).to(device)
    if reading == "visible":
        every_BN = torch.arange(grid.positions, device=device).expand(len(tokens_BNC), -1)
        return _drawn(encoder, tokens_BNC, grid, every_BN, every_BN, config, draws, informed)
    drawn_BNC = torch.zeros_like(tokens_BNC, dtype=torch.float32)
    groups = min(config.groups, grid.positions)
    for group in range(groups):
        hidden = torch.arange(grid.positions, device=device) % groups == group
        hidden_BP, visible_BM = order_BN[:, hidden].sort(1).values, order_BN[:, ~hidden].sort(1).values
        found_BPC = _drawn(encoder, tokens_BNC, grid, visible_BM, hidden_BP, config, draws, informed)
        drawn_BNC.scatter_(1, hidden_BP.unsqueeze(-1).expand_as(found_BPC), found_BPC)
    return drawn_BNC


def mean_closeness(pictures: Sequence[Reconstructed]) -> dict[str, Closeness]:
    """Means over pictures by name."""
    return {
        name: Closeness(
            float(np.mean([one.closeness[name].psnr for one in pictures])),
            float(np.mean([one.closeness[name].ssim for one in pictures])),
        )
        for name in pictures[0].closeness
    }


def report(pictures: Sequence[Reconstructed]) -> dict[str, Any]:
    """As JSON: means by name."""
    return {name: {"psnr": one.psnr, "ssim": one.ssim} for name, one in mean_closeness(pictures).items()}


def _drawn(
    encoder: MarEncoder,
    tokens_BNC: Tensor,
    grid: Grid,
    visible_BM: Tensor,
    drawn_BP: Tensor,
    config: ReconstructionConfig,
    draws: Sequence[torch.Generator],
    informed: bool,
) -> Tensor:
    """Tokens [B, P, C] at `drawn_BP` from the encoding of the visible ones."""
    mar = encoder.mar
    x_BSD = mar.encode(tokens_BNC, grid, visible_BM)
    if informed and encoder.inform is not None:
        x_BSD = encoder.inform(x_BSD)
    z_BPZ = mar.decode(x_BSD, grid, visible_BM, drawn_BP)
    steps = len(tables(config.diffusion_steps, z_BPZ.device).timesteps)
    shape = (steps, drawn_BP.shape[1], tokens_BNC.shape[-1])
    noise_TBPC = torch.stack([torch.randn(shape, generator=draw) for draw in draws], 1).to(z_BPZ.device)
    return draw_tokens(mar.diffloss, z_BPZ, noise_TBPC, 1.0, config.diffusion_steps, config.temperature, config.clip_x0)


def _decoded(encoder: MarEncoder, tokens_BNC: Tensor, grid: Grid) -> Tensor:
    return encoder.autoencoder.decode(encoder.mar.to_latents(tokens_BNC, grid))
