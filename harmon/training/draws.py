"""The random draws of training, each a pure function of its key, so no random state is ever stored.

A sample's draws are keyed by (seed, stage, task, sample index), a block's mask ratio by (seed, stage, task,
index of its first sample). Which worker draws, and in which order, changes nothing. The generator is Philox,
whose key is set without any warm-up: a generator costs about 15 microseconds. Drop-out is torch's own draw and is
not made here: see `harmon.training.loop`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from harmon.model.config import TRAIN_STEPS
from harmon.seeds import stream
from harmon.training.stage import StageConfig, Task


def keyed(*key: str | int, index: int = 0) -> np.random.Generator:
    """The generator of `key` and `index`: equal everywhere and always for an equal key."""
    return np.random.Generator(np.random.Philox(key=np.array([stream(*key), index], dtype=np.uint64)))


@dataclass(frozen=True)
class ImageDraws:
    """Draws of B text-to-image samples with N tokens of C values and R timesteps each."""

    dropped: NDArray[np.bool_]  # [B]
    order: NDArray[np.int64]  # [B, N]
    timesteps: NDArray[np.int64]  # [R, B, N]
    noise: NDArray[np.float32]  # [R, B, N, C]


def draw_images(stage: StageConfig, indices: Sequence[int], tokens: int, channels: int, repeats: int) -> ImageDraws:
    """The draws of the samples `indices`, one Philox key a sample."""
    rows = len(indices)
    dropped = np.empty(rows, dtype=np.bool_)
    order = np.empty((rows, tokens), dtype=np.int64)
    timesteps = np.empty((repeats, rows, tokens), dtype=np.int64)
    noise = np.empty((repeats, rows, tokens, channels), dtype=np.float32)
    for row, index in enumerate(indices):
        generator = keyed("sample", stage.seed, stage.stage, "text2image", index=index)
        dropped[row] = generator.random() < stage.caption_drop
        order[row] = generator.permutation(tokens)
        timesteps[:, row] = generator.integers(0, TRAIN_STEPS, (repeats, tokens))
        noise[:, row] = generator.standard_normal((repeats, tokens, channels), dtype=np.float32)
    return ImageDraws(dropped, order, timesteps, noise)


def chat_generator(stage: StageConfig, task: Task, index: int) -> np.random.Generator:
    """The generator of one text or image-to-text sample."""
    return keyed("sample", stage.seed, stage.stage, task, index=index)


def place_of_crop(stage: StageConfig, task: Task, index: int) -> float:
    """Where the square of a picture lies along its longer side at this visit: uniform from 0 to 1."""
    return float(keyed("crop", stage.seed, stage.stage, task, index=index).random())


def drawn_request(stage: StageConfig, index: int, requests: int) -> int:
    """Which of `requests` sentences asks for text-to-image sample `index`, whose prompt is its own picture."""
    return int(keyed("request", stage.seed, stage.stage, index=index).integers(requests))


def masked_positions(stage: StageConfig, block_start: int, tokens: int) -> int:
    """Masked positions of each row of the text-to-image block that begins with sample `block_start`.

    ceil(tokens * ratio), the ratio from the stage's truncated normal, or 1 in `full_mask_share` of the
    blocks.
    """
    generator = keyed("mask ratio", stage.seed, stage.stage, index=block_start)
    full, uniform = generator.random(2)
    ratio = 1.0 if full < stage.full_mask_share else _truncated_normal(stage, uniform)
    return min(tokens, math.ceil(tokens * ratio))


def mean_masked_share(stage: StageConfig) -> float:
    """Mean share of the positions that a text-to-image block masks, rounding up left aside."""
    points = 1000
    drawn = sum(_truncated_normal(stage, (point + 0.5) / points) for point in range(points)) / points
    return stage.full_mask_share + (1 - stage.full_mask_share) * drawn


def _truncated_normal(stage: StageConfig, uniform: float) -> float:
    spec, standard = stage.mask_ratio, NormalDist()
    low = standard.cdf((spec.low - spec.mean) / spec.deviation)
    high = standard.cdf((spec.high - spec.mean) / spec.deviation)
    value = spec.mean + spec.deviation * standard.inv_cdf(low + (high - low) * uniform)
    return min(max(value, spec.low), spec.high)
