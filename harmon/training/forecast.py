"""What a stage will take before it runs: how it is laid out on its GPUs, memory, floating-point operations and hours.

FLOPs come from `harmon.flops`, memory from `harmon.training.memory`. How much of the peak rate a run reaches is an
assumption until one has run here; 32 A100 in 4 and 8 days (paper, section 4) imply 0.18 at 0.5B and 0.31 at 1.5B.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import get_args

from harmon import flops
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.training.draws import mean_masked_share
from harmon.training.memory import GIB, Lengths, Memory, Recompute, micro_batch_memory
from harmon.training.stage import TASKS, StageConfig, Task

ASSUMED_MFU = 0.3


@dataclass(frozen=True)
class Device:
    """A kind of GPU."""

    name: str
    memory: float
    """Bytes."""
    flops: float
    """Peak bfloat16 rate, without sparsity."""


A100 = Device("A100-80G", 79.2 * GIB, 312e12)  # NVIDIA's data sheet; what the driver leaves of 80 GiB


@dataclass(frozen=True)
class Layout:
    """How a stage is laid out on its GPUs."""

    parallel: str
    """ddp: every GPU holds the model; fsdp: a share of it."""
    recompute: Recompute
    micro_rows: int
    """Rows of one forward pass."""
    fits: bool


@dataclass(frozen=True)
class Forecast:
    """What a stage takes on `workers` of `device`."""

    device: Device
    workers: int
    layout: Layout
    memory: dict[str, Memory]
    """By task, at `layout.micro_rows`."""
    flops_per_step: float
    """Of the whole global batch, without what is computed again."""
    mfu: float
    steps: int

    @property
    def seconds_per_step(self) -> float:
        return self.flops_per_step / (self.workers * self.device.flops * self.mfu)

    @property
    def hours(self) -> float:
        return self.seconds_per_step * self.steps / 3600

    def lines(self) -> Iterator[str]:
        """For a person."""
        layout, worst = self.layout, max(self.memory.values(), key=lambda one: one.needed)
        yield (
            f"layout on {self.workers} {self.device.name}: {layout.parallel}, micro-batches of {layout.micro_rows} "
            f"rows, recompute {layout.recompute}" + ("" if layout.fits else "; it does not fit: take more GPUs")
        )
        for task, memory in self.memory.items():
            yield f"memory, {task}: {memory.line()}"
        yield f"largest: {worst.needed / GIB:.1f} of {self.device.memory / GIB:.1f} GiB"
        yield f"a train step: {self.flops_per_step:.3g} FLOP, {self.seconds_per_step:.2f} s at {self.mfu:.0%} of peak"
        yield f"the stage: {self.hours:,.1f} hours, {self.hours * self.workers:,.0f} GPU-hours"


def forecast(
    stage: StageConfig,
    model: HarmonConfig,
    workers: int,
    device: Device = A100,
    mfu: float = ASSUMED_MFU,
    lengths: Lengths | None = None,
) -> Forecast:
    """What `stage` takes on `workers` of `device` at the share `mfu` of its peak rate."""
    lengths = lengths or Lengths()
    layout = choose_layout(stage, model, workers, device, lengths)
    memory: dict[str, Memory] = {
        task: _memory(stage, model, task, layout, workers, lengths) for task in TASKS if stage.ratio.of(task)
    }
    return Forecast(device, workers, layout, memory, step_flops(stage, model, lengths), mfu, stage.steps)


def choose_layout(
    stage: StageConfig, model: HarmonConfig, workers: int, device: Device, lengths: Lengths | None = None
) -> Layout:
    """The first layout that fits: whole copies before shards, keeping everything before computing again, and the most
    rows at once; fewer than a quarter of those that one worker has of a block only where nothing else fits.
    """
    share, tasks = -(-stage.block_rows // workers), [task for task in TASKS if stage.ratio.of(task)]
    halves = _halves(share)
    parallels = ("ddp", "fsdp") if workers > 1 else ("ddp",)
    for sizes in ([rows for rows in halves if 4 * rows >= share], halves):
        for parallel, recompute, rows in product(parallels, get_args(Recompute), sizes):
            layout = Layout(parallel, recompute, rows, True)
            needed = [_memory(stage, model, task, layout, workers, lengths or Lengths()).needed for task in tasks]
            if max(needed) <= device.memory:
                return layout
    return Layout(parallels[-1], "full", 1, False)


def step_flops(stage: StageConfig, model: HarmonConfig, lengths: Lengths | None = None) -> float:
    """FLOPs of one train step over all workers, from stored latents."""
    shares = {task: stage.ratio.of(task) for task in TASKS}
    per_sample = sum(share * sample_flops(stage, model, task, lengths) for task, share in shares.items() if share)
    return stage.global_batch * per_sample / sum(shares.values())


def sample_flops(stage: StageConfig, model: HarmonConfig, task: Task, lengths: Lengths | None = None) -> float:
    """Training FLOPs of one sample of `task` at these lengths, the masked share being the stage's mean."""
    lengths = lengths or Lengths()
    side, llm = stage.px // model.latent_stride // model.mar.patch_size, stage.learning_rate.llm is not None
    grid = Grid(side, side)
    if task == "text2image":
        masked, seen = round(grid.positions * mean_masked_share(stage)), 0.0
        prompt = lengths.prompt
        if lengths.picture:
            prompt += model.mar.buffer_size + grid.positions
            understood = flops.image_to_text(model, grid, 1, 1)
            seen = understood["encoder"] + understood["projections"]
        return seen + flops.total(flops.text_to_image(model, grid, masked, prompt, train_llm=llm))
    if task == "image2text":
        text = lengths.question + lengths.labelled
        return flops.total(flops.image_to_text(model, grid, text, lengths.labelled, train_llm=llm))
    return flops.total(flops.image_to_text(model, None, lengths.text, lengths.text - lengths.question, train_llm=llm))


def _memory(
    stage: StageConfig, model: HarmonConfig, task: Task, layout: Layout, workers: int, lengths: Lengths
) -> Memory:
    shards = workers if layout.parallel == "fsdp" else 1
    return micro_batch_memory(
        model, stage, task, layout.micro_rows, shards=shards, recompute=layout.recompute, lengths=lengths
    )


def _halves(rows: int) -> list[int]:
    halves = [rows]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    return halves
