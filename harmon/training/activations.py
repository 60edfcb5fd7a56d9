"""What forward keeps of one sample for backward, in bytes, from sizes alone.

A `Kept` of each part of the model: what stays until backward comes to it, and what is there for a moment on top while
one of its blocks is computed again. Attention is counted as a fused kernel keeps it (no matrix of scores).

Under `recompute` selective the results of matrix products and of attention stay (as `harmon.training.parallel` has
it), under full only what enters a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harmon.model.config import HarmonConfig
from harmon.model.head import FREQUENCIES

FULL = 4  # bytes of a float32
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Kept:
    """Bytes of one part of the model."""

    stays: float
    again: float = 0.0
    """Of one block, while it is computed again."""


@dataclass(frozen=True)
class Precision:
    """`small`: bytes of what matrix products take and give, 2 under autocast; norms and the stream between blocks stay
    in full.
    """

    small: int

    @property
    def is_mixed(self) -> bool:
        return self.small != FULL


def encoder_kept(config: HarmonConfig, slots: int, precision: Precision, recompute: Recompute) -> Kept:
    """Of MAR's encoder over `slots` buffers and visible positions, and of the projection into the language model."""
    mar, small = config.mar, precision.small
    block = _block(mar.encoder_width, mar.mlp_ratio, mar.encoder_heads, small, mar.dropout > 0)
    stays = _of_block(block, mar.encoder_width, mar.mlp_ratio, mar.encoder_heads, small, recompute)
    ends = 3 * FULL * mar.encoder_width + small * (2 * mar.encoder_width + 3 * config.llm.hidden_size)
    return Kept(slots * (mar.encoder_depth * stays + ends), slots * (block - stays))


def decoder_kept(
    config: HarmonConfig, positions: int, slots: int, masked: int, precision: Precision, recompute: Recompute
) -> Kept:
    """Of MAR's decoder over all `positions`, whose last block is left by the `masked` alone, and of the projection of
    `slots` out of the language model.
    """
    mar, small, everything = config.mar, precision.small, config.mar.buffer_size + positions
    width, ratio, heads, dropout = mar.decoder_width, mar.mlp_ratio, mar.decoder_heads, mar.dropout > 0
    block = _block(width, ratio, heads, small, dropout)
    last = _block(width, ratio, heads, small, dropout, masked / everything)
    inner, left = (_of_block(one, width, ratio, heads, small, recompute) for one in (block, last))
    ends = 2 * FULL * width * everything + FULL * width * masked
    projected = slots * (small * 3 * config.llm.hidden_size + (FULL + small) * mar.encoder_width)
    stays = everything * ((mar.decoder_depth - 1) * inner + left) + ends + projected
    return Kept(stays, everything * (block - inner))


def llm_kept(
    config: HarmonConfig, length: int, read: int, precision: Precision, recompute: Recompute, trains: bool
) -> Kept:
    """Of the language model over `length` positions, of which `read` leave its last layer. Frozen linear layers keep
    no input.
    """
    llm, small = config.llm, precision.small
    hidden, shared = llm.hidden_size, llm.hidden_size * llm.num_key_value_heads // llm.num_attention_heads
    # autocast casts a norm's output for each linear layer anew
    copies = ((3, 2) if precision.is_mixed else (1, 1)) if trains else (0, 0)
    keys = (FULL + small * copies[0]) * hidden + small * 2 * shared
    queries = (small * 2 + FULL + small * copies[1]) * hidden + FULL * llm.num_attention_heads
    rest = queries + small * (3 + trains) * llm.intermediate_size
    out = 2 * FULL * hidden * read
    if recompute == "none":
        return Kept(length * ((llm.num_hidden_layers - 1) * (keys + rest) + keys) + read * rest + out)
    stays: float = FULL * hidden
    if recompute == "selective":
        products = small * (4 * hidden + 2 * shared + 2 * llm.intermediate_size)
        stays += products + FULL * llm.num_attention_heads
    stays = min(stays, keys + rest)
    return Kept(length * llm.num_hidden_layers * stays + out, length * (keys + rest - stays))


def head_kept(config: HarmonConfig, rows: int, conditions: int, precision: Precision, recompute: Recompute) -> Kept:
    """Of the diffusion head: `rows` predictions under `conditions` decoder outputs."""
    width, small = config.head.width, precision.small
    part = (8 * small + 2 * FULL) * width  # a norm's input and output stay in full under autocast
    stays = {"none": part, "selective": 6 * small * width, "full": 4 * small * width}[recompute]  # with its modulation
    ends = part + small * FREQUENCIES + 14 * FULL * config.mar.token_channels
    whole = rows * (config.head.depth * stays + ends) + conditions * small * (width + config.mar.decoder_width)
    return Kept(whole, rows * (part - stays))


def _block(width: int, mlp_ratio: float, heads: int, small: int, dropout: bool, queries: float = 1.0) -> float:
    """Bytes that a block of MAR keeps of each position; `queries`: the share of positions that leaves it."""
    hidden = width * mlp_ratio
    attention = (FULL + small * 4) * width  # input, its norm, query with key and value
    mixed = (small + dropout) * width + FULL * heads
    mlp = (FULL + small + dropout) * width + (2 * small + dropout) * hidden
    return attention + queries * (mixed + mlp)


def _of_block(block: float, width: int, mlp_ratio: float, heads: int, small: int, recompute: Recompute) -> float:
    """What stays of the bytes of a block of MAR, of each position."""
    if recompute == "none":
        return block
    stays: float = FULL * width
    if recompute == "selective":  # query, key and value, attention, its projection, both layers of the MLP
        stays += small * width * (3 + 1 + 1 + mlp_ratio + 1) + FULL * heads
    return min(stays, block)
