"""How a stage is executed, and which of its train steps are skipped; the stage itself says what is trained."""

from typing import Literal

from pydantic import Field

from pipelines.settings import Settings


class Execution(Settings):
    """How a stage runs; nothing here changes what it computes, beyond the last bits of float sums."""

    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every worker holds the model, and gradients are one vector, added in one reduction. fsdp: parameters,
    gradients and moments are cut into as many shards as there are workers (torch's FSDP2). hsdp: into shards over
    groups of `shard_workers` workers, and the groups are copies."""
    shard_workers: int | None = Field(None, gt=1)
    """hsdp: workers that hold one copy together, such as the GPUs of a machine."""
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


class GuardConfig(Settings):
    """When a train step is skipped, and when training gives up."""

    sigmas: float | None = Field(None, gt=0)
    """Standard deviations above the mean of the last steps from which a value is a spike; None: only what is not
    finite is skipped."""
    window: int = Field(128, ge=8)
    """Last steps that mean and deviation are taken over; nothing is a spike before half of them are known."""
    patience: int = Field(16, gt=0)
    """Steps skipped in a row after which training ends with an error."""
