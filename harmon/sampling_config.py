"""How pictures are drawn: every choice of sampling, with the paper's as defaults."""

from pydantic import Field

from harmon.sampling import CfgSchedule
from harmon.training.stage import Departure
from pipelines.settings import Settings


class SamplingConfig(Settings):
    """How pictures are drawn. The defaults are the paper's (section 4.1; the released code's defaults)."""

    ar_steps: int = Field(default=64, gt=0)
    """K: iterations in which the tokens of a picture are drawn."""
    cfg: float = Field(default=3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    cfg_schedule: CfgSchedule = "constant"
    """`linear` raises the guidance from 1 with the share of tokens drawn."""
    diffusion_steps: str = Field(default="100", pattern=r"^\d+(,\d+)*$")
    """T: steps of the diffusion head for each token."""
    temperature: float = Field(default=1.0, gt=0)
    """Factor on the noise of every diffusion step."""
    clip_x0: float | None = Field(default=None, gt=0)
    """Bound on the predicted clean token at every diffusion step. The paper has none; models of a few million
    parameters need one, because the first of few steps multiplies their errors by hundreds."""

    def departures(self) -> list[Departure]:
        """What differs from the paper's sampling."""
        paper, here = SamplingConfig().model_dump(), self.model_dump()
        return [Departure(f"sampling.{key}", paper[key], here[key]) for key in here if here[key] != paper[key]]
