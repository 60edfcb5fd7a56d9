"""One row of a training dataset, as a sample of a stage sees it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Place:
    """Where a sample lies."""

    dataset: str
    shard: int
    row: int
    key: str


@dataclass(frozen=True)
class Row:
    """What a sample is made of."""

    place: Place
    entry: int
    """Which entry of the task's mixture it is of."""
    line: int
    """Which of the task's losses it counts to (`Mixture.lines`)."""
    text: Any
    """A caption, a conversation as a list of {role, text}, or None where the prompt is the picture itself."""
    latents: NDArray[np.float16] | None
    """[C * h * w]; None for a text, or where pictures are decoded while training."""
