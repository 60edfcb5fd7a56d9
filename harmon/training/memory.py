"""What a train step takes of one device's memory, from sizes alone: nothing is built or run.

    state         parameters, the gradient (one vector that is always there), AdamW's two moments, the average
    gathered      under FSDP, what of the weights is whole for a while: all outside its units from forward to backward,
                  and the units that backward works on and fetches ahead, with the buffers they arrive in
    casts         under autocast, the 16-bit copies of the weights of linear layers
    activations   what forward keeps for backward of one micro-batch
    top           what stands on these: logits and their gradients, the head's last tensors, a block computed again

The peak is the largest of three moments of the largest micro-batch: forward's end, when all 16-bit copies are still
there, also of blocks that will be computed again; backward from its beginning on; and its end, when the gradient of
all that no unit holds is whole under FSDP. An allocator rounds and fragments, and CUDA itself and its libraries take
about 1 GiB: `needed` holds room for both. torch.compile, which keeps less, is not counted.

Under FSDP gradients are cut as soon as a unit's are there, so that none is whole between micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from harmon.model.config import HarmonConfig
from harmon.training.activations import (
    FULL,
    Kept,
    Precision,
    Recompute,
    decoder_kept,
    encoder_kept,
    head_kept,
    llm_kept,
)
from harmon.training.device import GIB
from harmon.training.parameters import parameter_counts, units
from harmon.training.stage import PARTS, Part, StageConfig, Task

HALF = 2  # bytes of a bfloat16
RESERVED_SHARE, RESERVED_BYTES = 0.06, 1.0 * GIB  # for the allocator's gaps, for CUDA and its libraries


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

    @classmethod
    def longest(cls, stage: StageConfig, picture: bool = False) -> Lengths:
        """The most that a sample of `stage` can have, which its memory must hold."""
        chat, question = stage.chat_tokens, min(cls.question, stage.chat_tokens // 2)
        return cls(stage.prompt_tokens, question, chat - question, chat, picture)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak."""

    parameters: float
    gradient: float
    moments: float
    average: float
    gathered: float
    casts: float
    activations: float
    top: float

    @property
    def state(self) -> float:
        """What is there between two train steps."""
        return self.parameters + self.gradient + self.moments + self.average

    @property
    def peak(self) -> float:
        """The most that tensors take at once."""
        return self.state + self.gathered + self.casts + self.activations + self.top

    @property
    def needed(self) -> float:
        """The peak with room for the allocator, CUDA and its libraries."""
        return self.peak * (1 + RESERVED_SHARE) + RESERVED_BYTES

    def line(self) -> str:
        """For a person."""
        parts = {
            "parameters": self.parameters, "gradient": self.gradient, "moments": self.moments,
            "average": self.average, "gathered": self.gathered, "16-bit copies": self.casts,
            "activations": self.activations, "loss": self.top,
        }  # fmt: skip
        told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size)
        return f"{self.needed / GIB:.1f} GiB with reserve: {told}"


def micro_batch_memory(
    config: HarmonConfig,
    stage: StageConfig,
    task: Task,
    rows: int,
    *,
    bf16: bool = True,
    shards: int = 1,
    recompute: Recompute = "none",
    average: bool = False,
    lengths: Lengths | None = None,
    masked_share: float | None = None,
) -> Memory:
    """Memory of a train step whose largest micro-batch is `rows` rows of `task`.

    `shards`: devices over which parameters, gradient and moments are cut (FSDP); 1: each device holds all of them.
    `average`: whether one is kept beside the weights. `masked_share`: of the positions; None: the middle of the range
    that the stage draws from.
    """
    precision = Precision(HALF if bf16 else FULL)
    sample = _sample(config, stage, task, lengths or Lengths(), masked_share)
    counts, unit = parameter_counts(config), units(config)
    moves = {part: stage.learning_rate.of(part) is not None for part in PARTS}
    everything, trained = sum(counts.values()), sum(counts[part] for part in PARTS if moves[part])
    parts = _parts(config, sample, moves, precision, recompute)
    forward, backward = _loss(config, sample, rows, moves, precision)
    cached, saved = _casts(config, task, moves, recompute) if bf16 else (0.0, 0.0)
    first = unit.head + unit.decoder_block / 2 if task == "text2image" else 1.5 * unit.llm_layer
    fetched = FULL * (unit.rest + 2 * first) if shards > 1 else 0.0
    whole = FULL * 3 * unit.rest if shards > 1 else 0.0  # weights, their gradient, and that as it is sent
    activations = rows * sum(part.stays for part in parts)

    def at(gathered: float, casts: float, activations: float, top: float) -> Memory:
        return Memory(
            parameters=everything * FULL / shards,
            gradient=trained * FULL / shards,
            moments=2 * trained * FULL / shards,
            average=trained * FULL / shards if average else 0.0,
            gathered=gathered,
            casts=casts,
            activations=activations,
            top=top,
        )

    moments = (
        at(fetched, cached, activations, forward),
        at(fetched, saved, activations, _on_top(parts, rows, backward)),
        at(whole, 0.0, 0.0, 0.0),
    )
    return max(moments, key=lambda one: one.peak)


@dataclass(frozen=True)
class _Sample:
    """Places of one sample, counted."""

    task: Task
    positions: int
    """Of the image."""
    masked: int
    slots: int
    """Buffers and visible positions that the language model reads."""
    seen: int
    """Buffers and positions of a picture in a prompt."""
    length: int
    """All that the language model reads."""
    read: int
    """What leaves the language model."""


def _sample(
    config: HarmonConfig, stage: StageConfig, task: Task, lengths: Lengths, masked_share: float | None
) -> _Sample:
    positions, buffers = config.tokens(*[stage.px // config.latent_stride] * 2), config.mar.buffer_size
    if task == "text2image":
        middle = (stage.mask_ratio.low + stage.mask_ratio.high) / 2
        masked = round(positions * (middle if masked_share is None else masked_share))
        slots, seen = buffers + positions - masked, (buffers + positions) * lengths.picture
        return _Sample(task, positions, masked, slots, seen, lengths.prompt + seen + slots, slots)
    slots = config.slots(*[stage.px // config.latent_stride] * 2) if task == "image2text" else 0
    read = lengths.labelled if task == "image2text" else lengths.text - lengths.question
    return _Sample(task, positions, 0, slots, 0, slots + lengths.question + read, read)


def _parts(
    config: HarmonConfig, sample: _Sample, moves: dict[Part, bool], precision: Precision, recompute: Recompute
) -> list[Kept]:
    """What each part of the model keeps of one sample, in the order of backward."""
    parts, masked, slots = [], sample.masked, sample.slots
    if sample.task == "text2image":
        parts.append(head_kept(config, masked * config.head.batch_mul, masked, precision, recompute))
        parts.append(decoder_kept(config, sample.positions, slots, masked, precision, recompute))
    if moves["encoder"] or moves["llm"]:
        parts.append(llm_kept(config, sample.length, sample.read, precision, recompute, moves["llm"]))
    if moves["encoder"] and (sample.task == "text2image" or (sample.task == "image2text" and config.shares_encoder)):
        parts.append(encoder_kept(config, slots + sample.seen, precision, recompute))
    return parts


def _on_top(parts: list[Kept], rows: int, loss: float) -> float:
    """The most that stands on all of `parts` while backward goes through them: the loss, or later a block that is
    computed again, when the parts before its own are gone.
    """
    most, gone = loss, 0.0
    for part in parts:
        most = max(most, rows * part.again - gone)
        gone += rows * part.stays
    return most


def _loss(
    config: HarmonConfig, sample: _Sample, rows: int, moves: dict[Part, bool], precision: Precision
) -> tuple[float, float]:
    """Bytes at the end of forward, and the most when backward begins."""
    if sample.task == "text2image":
        last = rows * sample.masked * config.head.batch_mul * config.mar.token_channels * 12.0 * FULL
        return last, last
    small, table = precision.small, config.llm.vocab_size * config.llm.hidden_size
    logits = rows * sample.read * config.llm.vocab_size
    # the logarithms that cross-entropy kept and its gradient twice; or the table's gradient beside the last one
    beside = moves["llm"] * table * (FULL + (small if precision.is_mixed else 0.0))
    return logits * (small * precision.is_mixed + 2.0 * FULL), max(logits * 3.0 * FULL, logits * small + beside)


def _casts(config: HarmonConfig, task: Task, moves: dict[Part, bool], recompute: Recompute) -> tuple[float, float]:
    """Bytes of 16-bit copies at the end of forward, and those that backward begins with.

    Autocast keeps a copy of each trained weight until forward ends. Backward has those that it needs of linear layers,
    frozen or not; not those of blocks that it computes again.
    """
    counts, unit, drawn = parameter_counts(config), units(config), task == "text2image"
    passed: dict[Part, bool] = {"encoder": task != "text", "decoder": drawn, "llm": True}
    in_graph: dict[Part, bool] = {"encoder": moves["encoder"] and task != "text", "decoder": drawn, "llm": False}
    in_graph["llm"] = moves["encoder"] or moves["llm"]
    looked_up = unit.table if drawn else 0.0  # it is not multiplied
    saved = sum(counts[part] for part in PARTS if in_graph[part]) - looked_up * in_graph["llm"]
    if recompute == "none":
        return HALF * saved, HALF * saved
    cached = sum(counts[part] for part in PARTS if passed[part] and moves[part]) - looked_up * moves["llm"]
    products = config.head.depth * 2 * config.head.width * (config.head.width + 1)  # of the head's blocks
    return HALF * cached, HALF * (unit.rest - looked_up + (unit.head - products) * drawn)
