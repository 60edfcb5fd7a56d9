"""Clarity: sharpness and colourfulness, measured without a network. It is not an aesthetic score.

It finds pictures that are blurred or washed out, and knows nothing of beauty, composition or subject.

- sharpness: variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), levels 0-255, mean of red, green and
  blue so that an edge between two colours of equal brightness counts.
- colourfulness: M3 of Hasler and Suesstrunk (SPIE 2003), spread + 0.3 * offset of the opponent channels,
  about 0 to 110.
- clarity: sqrt(s / (s + 100) * c / (c + 33)), from 0 to 1, and 0.5 where both lie on their usual lines: 100
  is the customary threshold for blur, 33 what Hasler and Suesstrunk's observers called moderately colourful.

All are measured on the picture shrunk (never enlarged) until its longer side has at most 256 pixels, because
the Laplacian of a large photograph mostly sees its noise.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from filtering.decode import Undecodable, decoded
from filtering.measured import write_measured
from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

GROUP = "clarity"
STEP_VERSION = 1  # raised when any number below changes
SIDE = 256
BLURRED = 100.0
MODERATELY_COLOURFUL = 33.0

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sharpness", pa.float32()),
        ("colourfulness", pa.float32()),
        ("clarity", pa.float32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Clarity:
    """What was measured of one picture."""

    sharpness: float
    colourfulness: float

    @property
    def clarity(self) -> float:
        """Both together, from 0 (blurred, or grey) to 1."""
        sharp = self.sharpness / (self.sharpness + BLURRED)
        colourful = self.colourfulness / (self.colourfulness + MODERATELY_COLOURFUL)
        return float(np.sqrt(sharp * colourful))


def measure(picture: NDArray[np.uint8]) -> Clarity:
    """Sharpness and colourfulness of an RGB picture [H, W, 3] at its own size, at least 3 pixels a side."""
    rgb = picture.astype(np.float64)
    beside = rgb[:-2, 1:-1] + rgb[2:, 1:-1] + rgb[1:-1, :-2] + rgb[1:-1, 2:]
    laplacian = beside - 4 * rgb[1:-1, 1:-1]
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    red_green, yellow_blue = red - green, 0.5 * (red + green) - blue
    spread = np.hypot(red_green.std(), yellow_blue.std())
    offset = np.hypot(red_green.mean(), yellow_blue.mean())
    return Clarity(float(laplacian.var(axis=(0, 1)).mean()), float(spread + 0.3 * offset))


def clarity_step(dataset: Dataset) -> Step:
    """The step that writes the column group `clarity` of `dataset`."""
    configuration = {"side": SIDE, "blurred": BLURRED, "moderately_colourful": MODERATELY_COLOURFUL}
    groups = (SOURCE, IMAGES) if dataset.entries(IMAGES) else (SOURCE,)
    return Step(GROUP, STEP_VERSION, configuration, (Reads(dataset, groups),))


def score_clarity(dataset: Dataset, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `clarity` of every image of `dataset` and commit it.

    Rows without an image are failed with the reason `no_image`, undecodable ones with `undecodable`.
    """
    return write_measured(StepRun(dataset, clarity_step(dataset), on_progress), GROUP, SCHEMA, _row)


def _row(key: str, data: bytes | None) -> dict[str, object]:
    if data is None:
        return {"key": key, "status": "failed", "reason": "no_image"}
    try:
        found = measure(shrunk(data, SIDE))
    except Undecodable:
        return {"key": key, "status": "failed", "reason": "undecodable"}
    return {
        "key": key,
        "sharpness": found.sharpness,
        "colourfulness": found.colourfulness,
        "clarity": found.clarity,
        "status": "ok",
    }


def shrunk(data: bytes, side: int) -> NDArray[np.uint8]:
    """An encoded picture as RGB [H, W, 3], its longer side at most `side` pixels, no side under 3.

    Raises Undecodable for what is no picture.
    """
    picture = decoded(data, draft=side)
    scale = min(1.0, side / max(picture.size))
    size = (max(3, round(picture.width * scale)), max(3, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BOX)
    return np.asarray(picture)
