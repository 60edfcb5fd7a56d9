"""Rules on an image's width and height, which stand in the `source` columns: no pixel is decoded for them."""

from dataclasses import dataclass

from pydantic import Field

from pipelines.settings import Settings


@dataclass(frozen=True)
class Drop:
    """Why a row leaves: a one-word reason that is counted, and what was measured, for a person."""

    reason: str
    detail: str


class Geometry(Settings):
    """Limits of an image's shape. The paper drops "extreme height-width ratios" (A1.2.2) without a number."""

    min_side: int = Field(default=200, ge=1)
    """Pixels of the shorter side; 200 as DataComp's basic filter and COYO-700M."""

    max_aspect: float = Field(default=3.0, ge=1.0)
    """Longer side by shorter; 3 as the Harmon author's later LAION set (OpenUni), DataComp and COYO-700M."""

    def judge(self, width: int, height: int) -> Drop | None:
        """None to keep an image of this size in pixels, or why it leaves."""
        shorter, longer = sorted((width, height))
        if shorter < self.min_side:
            return Drop("too_small", f"shorter side {shorter} < {self.min_side}")
        if longer > self.max_aspect * shorter:
            return Drop("extreme_aspect", f"aspect {longer / shorter:.1f} > {self.max_aspect:.1f}")
        return None
