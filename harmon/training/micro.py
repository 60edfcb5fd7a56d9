"""Micro-batches: a worker's rows of a block in parts that fit its memory.

The loss of a part is a sum, divided by the whole step's count, so the gradients of the parts add up to the block's.
"""

from typing import overload

from harmon.training.data import ChatBatch, ImageBatch
from harmon.training.mixture import Block


def parts_of(block: Block, world: int, rows: int | None) -> int:
    """Micro-batches of at most `rows` rows (None: no limit) that every worker of `world` makes of its share of
    `block`: equally many on all, as sharded weights need, and none of them empty.
    """
    largest, smallest = -(-block.rows // world), block.rows // world
    return 1 if rows is None else max(1, min(-(-largest // rows), smallest))


@overload
def split(batch: ImageBatch, parts: int) -> list[ImageBatch]: ...
@overload
def split(batch: ChatBatch, parts: int) -> list[ChatBatch]: ...
def split(batch: ImageBatch | ChatBatch, parts: int) -> list[ImageBatch] | list[ChatBatch]:
    """The rows of `batch` in order, in `parts` batches of equal size within one row."""
    if isinstance(batch, ImageBatch):
        return [batch] if parts == 1 else [_images(batch, rows) for rows in _slices(len(batch.latents), parts)]
    return [batch] if parts == 1 else [_chats(batch, rows) for rows in _slices(len(batch.input_ids), parts)]


def _slices(rows: int, parts: int) -> list[slice]:
    return [slice(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]


def _images(batch: ImageBatch, rows: slice) -> ImageBatch:
    return ImageBatch(
        latents=batch.latents[rows],
        text_ids=batch.text_ids[rows],
        text_mask=batch.text_mask[rows],
        order=batch.order[rows],
        masked=batch.masked,
        timesteps=batch.timesteps[:, rows],
        noise=batch.noise[:, rows],
    )


def _chats(batch: ChatBatch, rows: slice) -> ChatBatch:
    latents = None if batch.latents is None else batch.latents[rows]
    return ChatBatch(latents, batch.input_ids[rows], batch.labels[rows])
