"""How a stage is executed, and which of its train steps are skipped; the stage itself says what is trained."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from harmon.training.device import Gpu
from pipelines.settings import Settings


class Execution(Settings):
    """How a stage runs; nothing here changes what it computes, beyond the last bits of float sums."""

    parallel: Literal["auto", "ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every worker holds the model, and gradients are one vector, added in one reduction. fsdp: parameters,
    gradients and moments are cut into as many shards as there are workers (torch's FSDP2). hsdp: into shards over
    groups of `shard_workers` workers, and the groups are copies. auto: what the memory model finds to fit on `gpu`,
    `micro_rows` and `recompute` with it, before the job is made (`harmon.training.forecast`)."""
    shard_workers: int | None = Field(None, gt=1)
    """hsdp: workers that hold one copy together, such as the GPUs of a machine; with auto it may choose hsdp."""
    micro_rows: int | None = Field(None, gt=0)
    """Rows of one forward pass on one worker; None: all that it has of a block."""
    pack: bool = False
    """Chats lie end to end in one row of the language model instead of each padded to the longest, and are dealt so
    that micro-batches hold about equally many tokens; text-to-image rows whose prompts are of near length share a
    micro-batch."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of each block is computed again in the backward pass: nothing, all but matrix products and attention, or
    all."""
    compile: bool = False
    """Compile blocks, MLPs and the diffusion head with torch.compile."""
    gpu: Gpu = "A100-80G"
    """Kind of GPU that auto and forecasts reckon with."""
    profile: tuple[PositiveInt, PositiveInt] | None = None
    """First and last train step, counted from 1 as in metrics.jsonl, of which every worker writes a trace of
    torch.profiler into the stage's folder, below profile/."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.parallel == "auto" and (self.micro_rows is not None or self.recompute != "none"):
            raise ValueError(
                "parallel: auto chooses micro_rows and recompute; leave them out, or name ddp, fsdp or hsdp"
            )
        if self.profile is not None and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile {list(self.profile)} must name the first step before the last")
        return self


class GuardConfig(Settings):
    """When a train step is skipped, and when training gives up."""

    sigmas: float | None = Field(None, gt=0)
    """Standard deviations above the mean of the last steps from which a value is a spike; None: only what is not
    finite is skipped."""
    window: int = Field(128, ge=8)
    """Last steps that mean and deviation are taken over; nothing is a spike before half of them are known."""
    patience: int = Field(16, gt=0)
    """Steps skipped in a row after which training ends with an error."""
