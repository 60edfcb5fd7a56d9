"""How many parameters a Harmon of given sizes has, by part and by the units that shards are gathered in."""

from __future__ import annotations

from dataclasses import dataclass

from harmon.model.config import HarmonConfig
from harmon.model.head import FREQUENCIES


@dataclass(frozen=True)
class Units:
    """Parameters of what is gathered at once under FSDP (`harmon.training.parallel`)."""

    encoder_block: float
    decoder_block: float
    llm_layer: float
    head: float
    rest: float
    """Of the model's, outside all of these: the vocabulary, tables, connectors."""
    table: float
    """Of the rest, the embedding, which is the language model's head too where they are tied."""


def parameter_counts(config: HarmonConfig) -> dict[str, float]:
    """Parameters of each of the paper's three parts."""
    mar, llm = config.mar, config.llm
    hidden, width, decoder = llm.hidden_size, mar.encoder_width, mar.decoder_width
    tables = llm.vocab_size * hidden * (1 if llm.tie_word_embeddings else 2)
    native, buffer, channels = mar.native_grid**2, mar.buffer_size, mar.token_channels
    encoder = mar.encoder_depth * _block(width, mar.mlp_ratio) + (channels + 1) * width + 4 * width
    encoder += width * (1 + buffer + native + mar.class_count) + (width + 1) * hidden + (hidden + 1) * hidden
    decoding = mar.decoder_depth * _block(decoder, mar.mlp_ratio) + (width + 1) * decoder + 2 * decoder
    decoding += decoder * (1 + buffer + native + native) + (hidden + 1) * hidden + (hidden + 1) * width
    if not config.shares_encoder:  # a connector of its own for what another encoder sees
        encoder += ((config.understanding_channels or channels) + 1) * hidden + (hidden + 1) * hidden
    return {
        "encoder": float(encoder),
        "decoder": float(decoding + _head(config)),
        "llm": float(llm.num_hidden_layers * _layer(config) + hidden + tables),
    }


def units(config: HarmonConfig) -> Units:
    """The parameters by unit."""
    mar, llm = config.mar, config.llm
    encoder, decoder = _block(mar.encoder_width, mar.mlp_ratio), _block(mar.decoder_width, mar.mlp_ratio)
    inside = mar.encoder_depth * encoder + mar.decoder_depth * decoder + llm.num_hidden_layers * _layer(config)
    return Units(
        encoder_block=encoder,
        decoder_block=decoder,
        llm_layer=_layer(config),
        head=_head(config),
        rest=sum(parameter_counts(config).values()) - inside - _head(config),
        table=float(llm.vocab_size * llm.hidden_size),
    )


def _block(width: int, mlp_ratio: float) -> float:
    hidden = int(width * mlp_ratio)
    return float(4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width)


def _layer(config: HarmonConfig) -> float:
    llm = config.llm
    hidden, shared = llm.hidden_size, llm.hidden_size * llm.num_key_value_heads // llm.num_attention_heads
    attention = 2 * hidden * hidden + hidden + 2 * (hidden + 1) * shared
    return float(attention + 3 * hidden * llm.intermediate_size + 2 * hidden)


def _head(config: HarmonConfig) -> float:
    width, channels = config.head.width, config.mar.token_channels
    block = 2 * width * (width + 1) + 3 * width * (width + 1) + 2 * width
    embed = (FREQUENCIES + 1) * width + (width + 1) * width + (config.mar.decoder_width + 1) * width
    embed += (channels + 1) * width
    return float(config.head.depth * block + embed + 2 * width * (width + 1) + (width + 1) * 2 * channels)
