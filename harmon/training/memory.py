"""What a train step takes of one device's memory, from sizes alone: nothing is built or run.

    state         parameters, the gradient (one vector that is always there), AdamW's two moments
    casts         under autocast, the 16-bit copies of the weights of linear layers, kept until backward has used them
    activations   what forward keeps for backward of one micro-batch
    loss          what stands on top when backward begins: logits and their gradients, or the head's last tensors

The peak is when backward begins on the largest micro-batch. Attention is counted as a fused kernel keeps it (no
matrix of scores). An allocator rounds and fragments, and CUDA itself and its libraries take about 1 GiB: `reserve`
holds room for both.

Shape letters: B rows, N image positions, P masked, U buffer, S = U + N - P, L text, T = L + S, R labelled, W width of
the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harmon.model.config import HarmonConfig
from harmon.model.head import FREQUENCIES
from harmon.training.stage import PARTS, StageConfig, Task

GIB = float(2**30)
FULL = 4  # bytes of a float32
RESERVED_SHARE, RESERVED_BYTES = 0.06, 1.0 * GIB  # for the allocator's gaps, for CUDA and its libraries

Recompute = Literal["none", "full"]


@dataclass(frozen=True)
class Lengths:
    """Tokens of one sample, the defaults as in the project's cost estimates."""

    prompt: int = 64
    """Of a text-to-image prompt."""
    question: int = 32
    """Of an image-to-text chat, what is not labelled; image slots are not counted."""
    labelled: int = 128
    """Of an image-to-text chat, what is."""
    text: int = 512
    """Of a chat without a picture, of which all but the question is labelled."""
    picture: bool = False
    """Whether a text-to-image prompt also holds the picture itself (reconstruction alignment)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    gradient: float
    moments: float
    casts: float
    activations: float
    loss: float

    @property
    def state(self) -> float:
        """What is there between two train steps."""
        return self.parameters + self.gradient + self.moments

    @property
    def peak(self) -> float:
        """The most that tensors take at once."""
        return self.state + self.casts + self.activations + self.loss

    @property
    def needed(self) -> float:
        """The peak with room for the allocator, CUDA and its libraries."""
        return self.peak * (1 + RESERVED_SHARE) + RESERVED_BYTES

    def line(self) -> str:
        """For a person."""
        parts = {
            "parameters": self.parameters, "gradient": self.gradient, "moments": self.moments,
            "16-bit copies": self.casts, "activations": self.activations, "loss": self.loss,
        }  # fmt: skip
        told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{self.needed / GIB:.1f} GiB with reserve: {told}"


def parameter_counts(config: HarmonConfig) -> dict[str, float]:
    """Parameters of each of the paper's three parts."""
    mar, head, llm = config.mar, config.head, config.llm
    hidden, width, decoder = llm.hidden_size, mar.encoder_width, mar.decoder_width
    shared = hidden * llm.num_key_value_heads // llm.num_attention_heads
    layer = 2 * hidden * hidden + hidden + 2 * (hidden + 1) * shared + 3 * hidden * llm.intermediate_size + 2 * hidden
    tables = llm.vocab_size * hidden * (1 if llm.tie_word_embeddings else 2)
    native, buffer, channels = mar.native_grid**2, mar.buffer_size, mar.token_channels
    encoder = mar.encoder_depth * _block_parameters(width, mar.mlp_ratio) + (channels + 1) * width + 4 * width
    encoder += width * (1 + buffer + native + mar.class_count) + (width + 1) * hidden + (hidden + 1) * hidden
    decoding = mar.decoder_depth * _block_parameters(decoder, mar.mlp_ratio) + (width + 1) * decoder + 2 * decoder
    decoding += decoder * (1 + buffer + native + native) + (hidden + 1) * hidden + (hidden + 1) * width
    return {
        "encoder": float(encoder),
        "decoder": float(decoding + _head_parameters(head.width, head.depth, channels, decoder)),
        "llm": float(llm.num_hidden_layers * layer + hidden + tables),
    }


def micro_batch_memory(
    config: HarmonConfig,
    stage: StageConfig,
    task: Task,
    rows: int,
    *,
    bf16: bool = True,
    shards: int = 1,
    recompute: Recompute = "none",
    lengths: Lengths | None = None,
) -> Memory:
    """Memory of a train step whose largest micro-batch is `rows` rows of `task`.

    `shards`: devices over which parameters, gradient and moments are cut (FSDP); 1: each device holds all of them.
    `recompute` full: only what enters a block is kept, and one block is computed again at a time.
    """
    lengths, mar, llm = lengths or Lengths(), config.mar, config.llm
    counts = parameter_counts(config)
    moves = {part: stage.learning_rate.of(part) is not None for part in PARTS}
    everything, trained = sum(counts.values()), sum(counts[part] for part in PARTS if moves[part])
    positions, small = config.tokens(*[stage.px // config.latent_stride] * 2), 2 if bf16 else FULL
    in_graph = {"encoder": moves["encoder"] and task != "text", "llm": moves["encoder"] or moves["llm"]}
    in_graph["decoder"] = task == "text2image"
    table = llm.vocab_size * llm.hidden_size
    if task == "text2image":
        masked = _masked(stage, positions)
        slots, repeats = mar.buffer_size + positions - masked, config.head.batch_mul
        seen = (mar.buffer_size + positions) * lengths.picture
        length, read = lengths.prompt + seen + slots, slots
        kept = _decoder(config, positions, slots, masked, small, recompute)
        kept += _head(config, masked * repeats, masked, small)
        loss = rows * masked * repeats * mar.token_channels * 12.0 * FULL
    else:
        slots, seen = mar.buffer_size + positions if task == "image2text" else 0, 0
        read = lengths.labelled if task == "image2text" else lengths.text - lengths.question
        length, kept, logits = slots + lengths.question + read, 0.0, rows * read * llm.vocab_size
        # the logarithms that cross-entropy kept and its gradient twice; or the table's gradient beside the last one
        loss = max(logits * 3.0 * FULL, logits * small + moves["llm"] * table * (FULL + (small if bf16 else 0.0)))
    if in_graph["encoder"]:
        kept += _encoder(config, slots + seen, small, recompute)
    if in_graph["llm"]:
        kept += _llm(config, length, read, small, recompute, moves["llm"])
    casts = sum(counts[part] for part in PARTS if in_graph[part])
    if task == "text2image" and in_graph["llm"]:
        casts -= table  # it is looked up, not multiplied
    return Memory(
        parameters=everything * FULL / shards,
        gradient=trained * FULL / shards,
        moments=2 * trained * FULL / shards,
        casts=casts * 2.0 if bf16 else 0.0,
        activations=rows * kept,
        loss=loss,
    )


def _masked(stage: StageConfig, positions: int) -> int:
    """Masked positions in the middle of the stage's range."""
    return round(positions * (stage.mask_ratio.low + stage.mask_ratio.high) / 2)


def _block_parameters(width: int, mlp_ratio: float) -> float:
    hidden = int(width * mlp_ratio)
    return 4 * width * (width + 1) + 2 * width * hidden + hidden + width + 4 * width


def _head_parameters(width: int, depth: int, channels: int, decoder: int) -> float:
    block = 2 * width * (width + 1) + 3 * width * (width + 1) + 2 * width
    embed = (256 + 1) * width + (width + 1) * width + (decoder + 1) * width + (channels + 1) * width
    return depth * block + embed + 2 * width * (width + 1) + (width + 1) * 2 * channels


def _block(width: int, mlp_ratio: float, heads: int, small: int, dropout: bool, queries: float = 1.0) -> float:
    """Bytes that a block of MAR keeps of each position; `queries`: the share of positions that leaves it."""
    hidden = width * mlp_ratio
    attention = (FULL + small * 4) * width  # input, its norm, query with key and value
    mixed = (small + dropout) * width + FULL * heads
    mlp = (FULL + small + dropout) * width + (2 * small + dropout) * hidden
    return attention + queries * (mixed + mlp)


def _encoder(config: HarmonConfig, slots: int, small: int, recompute: Recompute) -> float:
    """Of one sample, with the projection into the language model."""
    mar = config.mar
    block = _block(mar.encoder_width, mar.mlp_ratio, mar.encoder_heads, small, mar.dropout > 0)
    blocks = mar.encoder_depth * FULL * mar.encoder_width + block if recompute == "full" else mar.encoder_depth * block
    ends = 3 * FULL * mar.encoder_width + small * (2 * mar.encoder_width + 3 * config.llm.hidden_size)
    return slots * (blocks + ends)


def _decoder(config: HarmonConfig, positions: int, slots: int, masked: int, small: int, recompute: Recompute) -> float:
    """Of one sample, with the projection out of the language model."""
    mar, everything = config.mar, config.mar.buffer_size + positions
    block = _block(mar.decoder_width, mar.mlp_ratio, mar.decoder_heads, small, mar.dropout > 0)
    last = _block(mar.decoder_width, mar.mlp_ratio, mar.decoder_heads, small, mar.dropout > 0, masked / everything)
    inner = (mar.decoder_depth - 1) * (FULL * mar.decoder_width if recompute == "full" else block)
    ends = 2 * FULL * mar.decoder_width * everything + FULL * mar.decoder_width * masked
    projected = slots * (small * 3 * config.llm.hidden_size + (FULL + small) * mar.encoder_width)
    return everything * (inner + (block if recompute == "full" else last)) + ends + projected


def _llm(config: HarmonConfig, length: int, read: int, small: int, recompute: Recompute, trains: bool) -> float:
    """Of one sample: `length` positions, of which `read` leave the last layer. Frozen linear layers keep no input."""
    llm = config.llm
    hidden, shared = llm.hidden_size, llm.hidden_size * llm.num_key_value_heads // llm.num_attention_heads
    # autocast casts a norm's output for each linear layer anew
    copies = ((3, 2) if small != FULL else (1, 1)) if trains else (0, 0)
    keys = (FULL + small * copies[0]) * hidden + small * 2 * shared
    queries = (small * 2 + FULL + small * copies[1]) * hidden + FULL * llm.num_attention_heads
    rest = queries + small * (3 + trains) * llm.intermediate_size
    if recompute == "full":
        return length * (llm.num_hidden_layers * FULL * hidden + keys + rest)
    return length * ((llm.num_hidden_layers - 1) * (keys + rest) + keys) + read * (rest + 2 * FULL * hidden)


def _head(config: HarmonConfig, rows: int, conditions: int, small: int) -> float:
    """Of one sample: `rows` predictions under `conditions` decoder outputs."""
    width = config.head.width
    part = (8 * small + 2 * FULL) * width  # a norm's input and output stay in full under autocast
    ends = part + small * FREQUENCIES + 14 * FULL * config.mar.token_channels
    return rows * (config.head.depth * part + ends) + conditions * small * (width + config.mar.decoder_width)
