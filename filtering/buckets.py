"""Buckets: the fixed sizes, by resolution and aspect, that training batches are made of."""

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipelines.settings import Settings

BUCKET = "bucket"  # the column group, and its name in the view


class Buckets(Settings):
    """Every bucket has about a resolution squared pixels, and sides that are multiples of `multiple`."""

    resolutions: tuple[int, ...] = (256, 512)
    """Square roots of the buckets' areas in pixels; the paper's stages train at 256 and 512 (Table 1)."""
    max_aspect: float = Field(default=2.0, ge=1.0)
    """Longer by shorter side of the most extreme bucket."""
    multiple: int = Field(default=32, ge=1)
    """Of both sides in pixels: 16 for the autoencoder (MODEL.md), times 2."""

    @model_validator(mode="after")
    def _has_buckets(self) -> "Buckets":
        if not self.resolutions:
            raise ValueError("name a resolution, or leave the buckets out")
        if small := [resolution for resolution in self.resolutions if resolution < self.multiple]:
            raise ValueError(
                f"no bucket of about {small[0]} x {small[0]} pixels has sides that are multiples of {self.multiple}"
            )
        return self

    @cached_property
    def sizes(self) -> dict[int, NDArray[np.int64]]:
        """Width and height [buckets, 2] of each resolution, narrowest first."""
        found = {}
        for resolution in sorted(self.resolutions):
            sides = set()
            for width in range(self.multiple, int(resolution * math.sqrt(self.max_aspect)) + 1, self.multiple):
                height = max(self.multiple, round(resolution**2 / width / self.multiple) * self.multiple)
                if max(width, height) <= self.max_aspect * min(width, height):
                    sides |= {(width, height), (height, width)}
            found[resolution] = np.array(sorted(sides, key=lambda side: side[0] / side[1]), np.int64)
        return found

    def assign(self, width: NDArray[np.float64], height: NDArray[np.float64]) -> NDArray[np.int64]:
        """Width and height [rows, 2] of each picture's bucket: of the largest resolution whose bucket it fills without
        being enlarged (else the smallest), the nearest aspect on a log scale. 0, 0 for a row without a size."""
        known = (width > 0) & (height > 0)
        found = np.zeros((len(width), 2), np.int64)
        for resolution in sorted(self.resolutions):
            sizes = self.sizes[resolution]
            aspects = np.log(sizes[:, 0] / sizes[:, 1])
            own = np.log(np.where(known, width, 1) / np.where(known, height, 1))
            nearest = sizes[np.abs(own[:, None] - aspects).argmin(axis=1)]
            fills = known & (width >= nearest[:, 0]) & (height >= nearest[:, 1])
            first = resolution == min(self.resolutions)
            found = np.where((fills | (known & first))[:, None], nearest, found)
        return found
