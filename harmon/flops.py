"""What a training sample and a generated image cost, part by part, in floating-point operations.

A multiplication with its addition counts two, and only matrix products and convolutions count, as in
torch.utils.flop_counter, which these formulas agree with. Causal attention counts in full, as there: fused kernels
skip up to half of it. Backward takes each linear layer twice more (once where its input needs no gradient, or its
weights do not train) and fused attention two and a half times (it computes the scores anew).

Shape letters: N image positions, M visible, P drawn or masked positions, U buffer, L text, S = U + M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from harmon.model.autoencoder import KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.diffusion import kept_timesteps
from harmon.model.head import FREQUENCIES
from harmon.model.mar import Grid
from harmon.sampling import annealed, plan
from harmon.sampling_config import SamplingConfig

_ATTENTION_BACKWARD = 2.5  # five matrix products where forward has two


@dataclass(frozen=True)
class Flops:
    """Forward FLOPs of one part, split by what their backward costs."""

    linear: float = 0.0
    first: float = 0.0
    """Linear layers whose input needs no gradient."""
    attention: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __mul__(self, times: float) -> Flops:
        return Flops(*(getattr(self, field.name) * times for field in fields(self)))

    @property
    def forward(self) -> float:
        return self.linear + self.first + self.attention

    def training(self, trained: bool = True) -> float:
        """Forward and backward; `trained` False: the gradient only passes through."""
        backward = self.linear * (1 + trained) + self.first * trained + self.attention * _ATTENTION_BACKWARD
        return self.forward + backward


def text_to_image(
    config: HarmonConfig, grid: Grid, masked: int, text: int, pixels: KlConfig | None = None, train_llm: bool = True
) -> dict[str, float]:
    """Training FLOPs of one text-to-image sample by part, `text` prompt tokens (padding included) and `masked`
    positions. With `pixels` the autoencoder encodes it on line; None: latents are given.
    """
    slots = config.mar.buffer_size + grid.positions - masked
    head = head_part(config, masked * config.head.batch_mul, masked, masked * config.head.batch_mul)
    llm = llm_part(config, text + slots, slots, text + slots).training(train_llm)
    parts = {
        "encoder": encoder_part(config, grid.positions - masked).training(),
        "projections": (projection_part(config, slots) + _projection_out(config, slots)).training(),
        "llm": llm,
        "decoder": decoder_part(config, grid.positions, slots, masked).training(),
        "head": head.training(),
    }
    return parts | _autoencoder(config, grid, pixels)


def image_to_text(
    config: HarmonConfig,
    grid: Grid | None,
    text: int,
    labelled: int,
    pixels: KlConfig | None = None,
    train_llm: bool = True,
) -> dict[str, float]:
    """Training FLOPs of one image-to-text sample by part; `grid` None: of a text-only one.

    `text` counts tokens without image slots, `labelled` those with a loss. What a frozen encoder saw was made before
    and costs nothing here.
    """
    slots = config.slots(*(side * config.mar.patch_size for side in grid)) if grid else 0
    labels = Flops(linear=2.0 * labelled * config.llm.hidden_size * config.llm.vocab_size)
    llm = llm_part(config, text + slots, labelled, text + slots) + labels
    if grid is None:
        return {"llm": llm.training(train_llm)}
    return {
        "encoder": encoder_part(config, grid.positions).training() if config.shares_encoder else 0.0,
        "projections": projection_part(config, slots).training(),
        "llm": llm.training(train_llm),
    } | _autoencoder(config, grid, pixels)


def generated_image(
    config: HarmonConfig, grid: Grid, prompt: int, sampling: SamplingConfig, pixels: KlConfig | None = None
) -> dict[str, float]:
    """FLOPs of one generated image by part, `prompt` tokens long (each half's, padding included)."""
    mar, copies = config.mar, 1 + (sampling.cfg != 1)
    parts = dict.fromkeys(("encoder", "projections", "llm", "decoder", "head"), 0.0)
    parts["llm"] += copies * llm_part(config, prompt, 1, prompt).forward
    turns = plan(grid.positions, sampling.ar_steps, sampling.cfg, sampling.cfg_schedule, sampling.cfg_interval)
    diffusion_steps = sampling.diffusion_steps or config.head.sampling_steps
    age = sampling.cfg_every
    kept_age, kept_rows, last_drawn = sampling.refresh_every, 0, 0
    for k, turn in enumerate(turns):
        drawn, slots = turn.masked - turn.masked_next, mar.buffer_size + grid.positions - turn.masked
        if not drawn:
            continue
        guided = copies == 2 and turn.cfg != 1
        fresh = guided and age >= sampling.cfg_every
        age = (1 if fresh else age + 1) if guided else age
        rows = 2 if fresh else 1
        read = None if fresh and sampling.cfg_every > 1 else drawn
        whole = kept_age >= sampling.refresh_every or rows > kept_rows or read is None  # as harmon.token_cache has it
        kept_age, kept_rows = 1 if whole else kept_age + 1, rows
        visible = grid.positions - turn.masked
        new = visible if whole else last_drawn
        computed, decoded = mar.buffer_size + new, grid.positions if whole else new + drawn
        last_drawn = drawn
        parts["encoder"] += encoder_part(config, new, visible - new).forward
        parts["projections"] += projection_part(config, computed).forward
        parts["projections"] += rows * _projection_out(config, computed).forward
        parts["llm"] += rows * llm_part(config, computed, computed, prompt + slots).forward
        parts["decoder"] += rows * decoder_part(config, decoded, computed, read, grid.positions - decoded).forward
        respacing = annealed(diffusion_steps, sampling.diffusion_steps_last, k, sampling.ar_steps)
        steps, halves = len(kept_timesteps(respacing)), 1 + guided
        parts["head"] += head_part(config, steps, drawn * halves, drawn * halves * steps, drawn * steps).forward
    if pixels is not None:
        height, width = (side * mar.patch_size for side in grid)
        parts["autoencoder"] = _kl_decode(pixels, height, width)
    return parts


def total(parts: Mapping[str, float]) -> float:
    """The sum over all parts."""
    return sum(parts.values())


def encoder_part(config: HarmonConfig, visible: int, kept: int = 0) -> Flops:
    """`kept` visible tokens more are attended to, and were computed before."""
    mar = config.mar
    slots = mar.buffer_size + visible
    return Flops(first=2.0 * visible * mar.token_channels * mar.encoder_width) + _block(
        mar.encoder_width, mar.mlp_ratio, slots, slots, kept
    ) * float(mar.encoder_depth)


def decoder_part(config: HarmonConfig, positions: int, slots: int, read: int | None, kept: int = 0) -> Flops:
    """`read` positions leave the last block; None: all. `kept` more are attended to, and were computed before."""
    mar = config.mar
    width, everything = mar.decoder_width, mar.buffer_size + positions
    inner = _block(width, mar.mlp_ratio, everything, everything, kept) * (mar.decoder_depth - 1)
    last = _block(width, mar.mlp_ratio, everything, everything if read is None else read, kept)
    return Flops(linear=2.0 * slots * mar.encoder_width * width) + inner + last


def _block(width: int, mlp_ratio: float, keys: int, queries: int, kept: int = 0) -> Flops:
    """`keys` positions are computed and `queries` of them read, which attend to `kept` more."""
    hidden = int(width * mlp_ratio)
    linear = 2.0 * width * (2 * keys * width + 2 * queries * width + 2 * queries * hidden)
    return Flops(linear=linear, attention=4.0 * queries * (keys + kept) * width)


def projection_part(config: HarmonConfig, slots: int) -> Flops:
    hidden = config.llm.hidden_size
    return Flops(linear=2.0 * slots * (config.mar.encoder_width * hidden + hidden * hidden))


def _projection_out(config: HarmonConfig, slots: int) -> Flops:
    return projection_part(config, slots)  # the same two sizes the other way round


def llm_part(config: HarmonConfig, length: int, read: int, keys: int) -> Flops:
    """`length` new positions attend to `keys`, the new ones included; `read` of them leave the last layer."""
    llm = config.llm
    shared = llm.hidden_size * llm.num_key_value_heads // llm.num_attention_heads

    def layer(queries: int) -> Flops:
        outward = 2 * llm.hidden_size + 3 * llm.intermediate_size
        linear = 2.0 * llm.hidden_size * (2 * length * shared + queries * outward)
        return Flops(linear=linear, attention=4.0 * queries * keys * llm.hidden_size)

    return layer(length) * float(llm.num_hidden_layers - 1) + layer(read)


def head_part(config: HarmonConfig, times: int, conditions: int, rows: int, inputs: int | None = None) -> Flops:
    """`rows` predictions under `conditions` embedded decoder outputs and `times` embedded timesteps; `inputs`
    noisy tokens are projected, where not one for each row.
    """
    width, channels = config.head.width, config.mar.token_channels
    first = 2.0 * width * (times * FREQUENCIES + (rows if inputs is None else inputs) * channels)
    condition = 2.0 * width * (times * width + conditions * config.mar.decoder_width)
    body = 2.0 * rows * width * (5 * config.head.depth * width + 2 * width + 2 * channels)
    return Flops(linear=condition + body, first=first)


def _autoencoder(config: HarmonConfig, grid: Grid, pixels: KlConfig | None) -> dict[str, float]:
    if pixels is None:
        return {}
    height, width = (side * config.mar.patch_size for side in grid)
    return {"autoencoder": picture_encoding(pixels, height, width)}


def picture_encoding(config: KlConfig, height: int, width: int) -> float:
    """FLOPs of encoding one picture; `height` and `width` of its latents."""
    widths, levels = config.widths, len(config.widths)
    area = height * width * config.stride**2
    flops = _convolution(3, config.base_channels, 3, area)
    for level, (inputs, outputs) in enumerate(zip((config.base_channels, *widths), widths)):
        flops += _residual_blocks(inputs, outputs, config.res_blocks, area)
        if config.attends(level):
            flops += config.res_blocks * _attention(outputs, area)
        if level < levels - 1:
            area //= 4
            flops += _convolution(outputs, outputs, 3, area)
    moments = 2 * config.latent_channels
    flops += _middle(widths[-1], area) + _convolution(widths[-1], moments, 3, area)
    return flops + _convolution(moments, moments, 1, area)


def _kl_decode(config: KlConfig, height: int, width: int) -> float:
    widths, area = config.widths, height * width
    flops = _convolution(config.latent_channels, config.latent_channels, 1, area)
    flops += _convolution(config.latent_channels, widths[-1], 3, area) + _middle(widths[-1], area)
    for level, (inputs, outputs) in reversed(list(enumerate(zip((*widths[1:], widths[-1]), widths)))):
        flops += _residual_blocks(inputs, outputs, config.res_blocks + 1, area)
        if level:
            area *= 4
            flops += _convolution(outputs, outputs, 3, area)
    return flops + _convolution(widths[0], 3, 3, area)


def _residual_blocks(inputs: int, outputs: int, blocks: int, area: int) -> float:
    shortcut = _convolution(inputs, outputs, 1, area) if inputs != outputs else 0.0
    return (
        shortcut + _convolution(inputs, outputs, 3, area) + (2 * blocks - 1) * _convolution(outputs, outputs, 3, area)
    )


def _middle(width: int, area: int) -> float:
    return _residual_blocks(width, width, 2, area) + _attention(width, area)


def _attention(width: int, area: int) -> float:
    return 4 * _convolution(width, width, 1, area) + 4.0 * area * area * width


def _convolution(inputs: int, outputs: int, side: int, area: int) -> float:
    """A square kernel of `side`, `area` output positions."""
    return 2.0 * inputs * outputs * side**2 * area
