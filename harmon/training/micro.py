"""Micro-batches: a worker's rows of a block in parts that fit its memory.

The loss of a part is a sum, divided by the whole step's count, so the gradients of the parts add up to the block's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harmon.model.packing import pack
from harmon.model.transfer import sent
from harmon.training.buckets import alike, balanced
from harmon.training.data import ChatBatch, ImageBatch
from harmon.training.mixture import Block
from harmon.training.stage import Task

Batch = ImageBatch | ChatBatch


def parts_of(block: Block, world: int, rows: int | None) -> int:
    """Micro-batches of at most `rows` rows (None: no limit) that the worker of `world` with the most rows of `block`
    makes of its share.
    """
    largest = -(-block.rows // world)
    return 1 if rows is None else -(-largest // rows)


@dataclass(frozen=True)
class Part:
    """One forward and backward pass of a worker."""

    block: Block
    batch: Batch
    stands_in: bool = False
    """Whether it only keeps this worker in step with the others: it has no weight."""


class MicroBatches:
    """Cuts a worker's batches into parts of at most `rows` rows (None: no limit).

    With `blank`, the batch of nothing of each task, all of `world` workers make equally many passes of a block, which
    sharded weights need, since each pass gathers them from all: a worker with fewer rows than others, because the
    world does not divide the block or because pictures proved corrupt, makes up for it with blank parts. `packs`:
    lengths say which rows share a part (Execution.pack).
    """

    def __init__(
        self, world: int, rows: int | None, blank: Callable[[Task], Batch] | None = None, packs: bool = False
    ) -> None:
        self.world, self.rows, self.blank = world, rows, blank
        self._split = split_by_length if packs else split

    def parts(self, blocks: Sequence[Block], batches: Sequence[Batch | None]) -> list[Part]:
        """The parts of a step's blocks, in order."""
        return [part for block, batch in zip(blocks, batches, strict=True) for part in self._of(block, batch)]

    def _of(self, block: Block, batch: Batch | None) -> list[Part]:
        wanted = parts_of(block, self.world, self.rows)
        parts = [] if batch is None else [Part(block, piece) for piece in self._split(batch, wanted)]
        if self.blank is None or len(parts) == wanted:
            return parts
        return parts + [Part(block, self.blank(block.task), stands_in=True)] * (wanted - len(parts))


def split(batch: ImageBatch | ChatBatch, parts: int) -> list[ImageBatch] | list[ChatBatch]:
    """The rows of `batch` in order, in `parts` batches of equal size within one row; fewer where it has fewer rows."""
    if isinstance(batch, ImageBatch):
        return [batch] if parts == 1 else [_images(batch, rows) for rows in _slices(len(batch.latents), parts)]
    return [batch] if parts == 1 else [_chats(batch, rows) for rows in _slices(len(batch.input_ids), parts)]


def split_by_length(batch: ImageBatch | ChatBatch, parts: int) -> list[ImageBatch] | list[ChatBatch]:
    """The rows of `batch` in as many batches as by `split`: prompts of near length together, and cut to the longest
    of them; chats so that each batch has about equally many tokens.
    """
    if parts == 1:
        return split(batch, parts)
    if isinstance(batch, ImageBatch):
        lengths = batch.text_mask.sum(1).tolist()
        groups = alike(lengths, min(len(lengths), parts))
        return [_images(batch, torch.tensor(rows), max(lengths[row] for row in rows)) for rows in groups]
    tokens = pack(batch.input_ids, batch.labels).lengths
    return [_chats(batch, torch.tensor(rows)) for rows in balanced(tokens, min(len(tokens), parts))]


def _slices(rows: int, parts: int) -> list[slice]:
    parts = min(rows, parts)
    return [slice(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]


def _images(batch: ImageBatch, rows: slice | Tensor, longest: int | None = None) -> ImageBatch:
    return replace(
        batch,
        latents=_latents(batch.latents, rows),
        text_ids=batch.text_ids[rows, :longest],
        text_mask=batch.text_mask[rows, :longest],
        order=batch.order[rows],
        timesteps=batch.timesteps[:, rows],
        noise=batch.noise[:, rows],
        lines=None if batch.lines is None else batch.lines[rows],
    )


def _latents(latents: Tensor, rows: slice | Tensor) -> Tensor:
    """Those of some rows; made while training, they lie on the device, and indexing by `rows` would wait for it."""
    return latents[rows] if isinstance(rows, slice) else latents.index_select(0, sent(rows, latents.device))


def _chats(batch: ChatBatch, rows: slice | Tensor) -> ChatBatch:
    latents = None if batch.latents is None else _latents(batch.latents, rows)
    lines = None if batch.lines is None else batch.lines[rows]
    ids, labels = batch.input_ids[rows], batch.labels[rows]
    return replace(batch, latents=latents, input_ids=ids, labels=labels, lines=lines)
