"""What the paper's days on its GPUs imply: nothing here is a number that the paper states but the days."""

from dataclasses import dataclass

from harmon.model.config import HarmonConfig
from harmon.plain_flops import plain_stage_flops
from harmon.training.device import A100
from harmon.training.stage import load_stage

GPUS = 32
DAYS = {"harmon-0.5b": 4, "harmon-1.5b": 8}  # paper, section 4: "32 A100 GPUs for 4 (0.5B) and 8 (1.5B) days"
STAGES = ("stage1", "stage2", "stage3")


@dataclass(frozen=True)
class Implied:
    """The utilisation that the paper's time implies, derived."""

    model: str
    days: int
    flops: float
    """Of the three stages, by the plain count."""

    @property
    def gpu_hours(self) -> float:
        return GPUS * self.days * 24.0

    @property
    def utilisation(self) -> float:
        """Share of the A100's peak bfloat16 rate."""
        return self.flops / (self.gpu_hours * 3600 * A100.flops)

    def line(self) -> str:
        """For a person."""
        return (
            f"{self.utilisation:.1%} derived for {self.model}: {self.days} days on {GPUS} A100 (paper, section 4) are "
            f"{self.gpu_hours:,.0f} GPU-hours, {self.flops:.3g} FLOP by the plain count (ours), 312 TFLOP/s a GPU"
        )


def implied() -> tuple[Implied, ...]:
    """Of both published sizes."""
    return tuple(
        Implied(name, days, sum(plain_stage_flops(load_stage(stage), HarmonConfig.preset(name)) for stage in STAGES))
        for name, days in DAYS.items()
    )
