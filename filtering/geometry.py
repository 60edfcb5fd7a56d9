"""Rules on an image's width and height, which stand in the `source` columns: no pixel is decoded for them."""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from filtering.rows import Drop, ShardRows
from filtering.rules import Check, Rule
from pipelines.manifest import SOURCE


class Geometry(Rule):
    """Limits of an image's shape. The paper drops "extreme height-width ratios" (A1.2.2) without a number."""

    min_side: int = Field(default=200, ge=1)
    """Pixels of the shorter side; 200 as DataComp's basic filter and COYO-700M."""

    max_aspect: float = Field(default=3.0, ge=1.0)
    """Longer side by shorter; 3 as the Harmon author's later LAION set (OpenUni), DataComp and COYO-700M."""

    min_pixels: int = Field(default=1, ge=1)
    """Width times height at least."""

    max_pixels: int | None = Field(default=None, ge=1)
    """Width times height at most; None: any."""

    def judge(self, width: int, height: int) -> Drop | None:
        """None to keep an image of this size in pixels, or why it leaves."""
        shorter, longer = sorted((width, height))
        if shorter < self.min_side:
            return Drop("too_small", f"shorter side {shorter} < {self.min_side}")
        if longer > self.max_aspect * shorter:
            return Drop("extreme_aspect", f"aspect {longer / shorter:.1f} > {self.max_aspect:.1f}")
        if width * height < self.min_pixels:
            return Drop("too_few_pixels", f"{width} x {height} pixels < {self.min_pixels}")
        if self.max_pixels is not None and width * height > self.max_pixels:
            return Drop("too_many_pixels", f"{width} x {height} pixels > {self.max_pixels}")
        return None

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """`judge` for all rows of a shard at once; a row without a size is `unmeasured`."""
        width, height, pictures = rows.numbers(SOURCE, "width"), rows.numbers(SOURCE, "height"), rows.pictures
        shorter, longer, pixels = np.minimum(width, height), np.maximum(width, height), width * height

        def why(row: int) -> str:
            drop = self.judge(int(width[row]), int(height[row]))
            return drop.detail if drop else ""

        unmeasured = ~(shorter > 0)
        yield Check("unmeasured", pictures & unmeasured, lambda row: "source has no width and height")
        yield Check("too_small", pictures & (shorter < self.min_side), why)
        yield Check("extreme_aspect", pictures & (longer > self.max_aspect * shorter), why)
        yield Check("too_few_pixels", pictures & (pixels < self.min_pixels), why)
        if self.max_pixels is not None:
            yield Check("too_many_pixels", pictures & (pixels > self.max_pixels), why)
