"""How pictures are drawn: the paper's settings, and the approximations that trade exactness for time."""

from typing import Any

from pydantic import Field, model_validator

from harmon.model.config import RESPACING, HarmonConfig
from harmon.sampling import CfgSchedule, Sampler
from harmon.training.stage import Departure
from pipelines.settings import Settings, parse


class SamplingConfig(Settings):
    """How pictures are drawn. The defaults are the paper's (section 4.1; the released code's defaults), and the
    model's own for the diffusion steps: 100 in the published ones.

    The last five fields are approximations, off by default: docs/sampling.md has what each costs, docs/speed.md what
    it saves.
    """

    ar_steps: int = Field(default=64, gt=0)
    """K: iterations in which the tokens of a picture are drawn."""
    cfg: float = Field(default=3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    cfg_schedule: CfgSchedule = "constant"
    """`linear` raises the guidance from 1 with the share of tokens drawn."""
    diffusion_steps: str | None = Field(default=None, pattern=RESPACING)
    """T: steps of the diffusion head for each token. None: the model's own (its config's head.sampling_steps)."""
    temperature: float = Field(default=1.0, gt=0)
    """Factor on the noise of every diffusion step."""
    clip_x0: float | None = Field(default=None, gt=0)
    """Bound on the predicted clean token at every diffusion step. The paper has none; models of a few million
    parameters need one, because the first of few steps multiplies their errors by hundreds."""
    diffusion_steps_last: int | None = Field(default=None, gt=0)
    """Diffusion steps of the last AR step, `diffusion_steps` being those of the first and the others lying on a
    line between (DiSA, arXiv 2505.20297; published: 50 to 5). None: the same in every AR step."""
    sampler: Sampler = "ddpm"
    """`dpm++` solves the diffusion with SDE-DPM-Solver++(2M) (arXiv 2211.01095), for few diffusion steps. It
    does without the learned variance."""
    cfg_interval: tuple[float, float] = (0.0, 1.0)
    """Share of the AR steps from which, and until which, there is guidance; outside, the unconditional half is
    not computed (after arXiv 2404.07724, which bounds guidance to an interval of noise levels)."""
    cfg_every: int = Field(default=1, gt=0)
    """AR steps from one computation of the unconditional half to the next; between them each position keeps its
    difference from the conditional half (the condition cache of LazyMAR, arXiv 2503.12450)."""

    refresh_every: int = Field(default=1, gt=0)
    """AR steps from one computation of all features to the next; between them only the buffers, the tokens drawn
    since, and the positions about to be drawn are computed, and attend to what is kept of the others (the token
    cache of LazyMAR, arXiv 2503.12450; `harmon.token_cache`)."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "SamplingConfig":
        low, high = self.cfg_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"cfg_interval ({low}, {high}) is no interval within 0 and 1")
        if self.diffusion_steps_last and self.diffusion_steps and not self.diffusion_steps.isdigit():
            raise ValueError(f"diffusion_steps_last needs a single number of steps, not {self.diffusion_steps!r}")
        return self

    def resolved(self, model: HarmonConfig) -> "SamplingConfig":
        """Itself with the diffusion steps named. Raises ConfigurationError where `model`'s own cannot be annealed."""
        if self.diffusion_steps is not None:
            return self
        own = {"diffusion_steps": model.head.sampling_steps}
        return parse(SamplingConfig, {**self.model_dump(), **own}, "the sampling, with the model's own diffusion steps")

    def departures(self, model: HarmonConfig) -> list[Departure]:
        """What differs from the paper's sampling when `model` draws."""
        paper, here = PAPER.model_dump(), self.resolved(model).model_dump()
        return [Departure(f"sampling.{key}", paper[key], here[key]) for key in here if here[key] != paper[key]]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `harmon.sampling.generate`."""
        values = self.model_dump()
        return {"steps": values.pop("ar_steps"), **values}


PAPER = SamplingConfig(diffusion_steps="100")
"""The paper's sampling (section 4.1), whatever steps a model's config names."""
