"""What a detector gives, and what stands for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harmon.evaluation.scorers.geneval import Detection


@dataclass(frozen=True, eq=False)
class Seen:
    """One object that was detected, and the pixels that it covers."""

    detection: Detection
    mask: NDArray[np.bool_] | None = None
    """[H, W] of the picture; None where the detector gives boxes alone."""


class Detector(Protocol):
    """Finds COCO's objects (`pipelines.coco_names`) in a picture."""

    @property
    def label(self) -> str:
        """Its name and its weights, as every output names them."""
        ...

    def detect(self, image: Image.Image) -> Mapping[str, Sequence[Seen]]:
        """Objects of an RGB picture by their names."""
        ...


class ColourClassifier(Protocol):
    """Tells the colour of objects."""

    @property
    def label(self) -> str:
        """Its name and its weights."""
        ...

    def colours(self, image: Image.Image, name: str, objects: Sequence[Seen]) -> list[str]:
        """One of GenEval's colours for each of the `objects`, which are all called `name`."""
        ...
