"""What every request of one server has to do with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from anyio import CapacityLimiter

from harmon.model.diffusion import schedule
from harmon.sampling_config import SamplingConfig
from harmon.serving.engine import Engine
from harmon.serving.intake import Intake
from harmon.serving.metrics import Metrics
from harmon.serving.settings import ServingSettings
from harmon.trained import Trained
from pipelines.settings import parse

DECODERS = 2  # pictures that are decoded at a time: each may take some hundred megabytes for a moment


@dataclass(frozen=True)
class Served:
    """`sampling` is how pictures are drawn unless a request says otherwise."""

    trained: Trained
    settings: ServingSettings
    sampling: SamplingConfig
    engine: Engine
    metrics: Metrics
    intake: Intake
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(DECODERS))

    @classmethod
    def of(cls, trained: Trained, settings: ServingSettings) -> Served:
        """Raises ConfigurationError where the checkpoint's own sampling is not one."""
        # Both keep features from one AR step to the next, which rows that come and go do not share.
        exact = {"cfg_every": 1, "refresh_every": 1}
        sampling = parse(SamplingConfig, {**trained.sampling, **exact}, "the checkpoint's sampling")
        sampling = sampling.resolved(trained.model.config)
        assert sampling.diffusion_steps is not None
        schedule(sampling.diffusion_steps)  # an impossible one is refused now, not at the first picture
        metrics, trained = Metrics(), replace(trained, text=trained.text.forgetting())
        return cls(trained, settings, sampling, Engine(trained, settings, metrics), metrics, Intake(settings))
