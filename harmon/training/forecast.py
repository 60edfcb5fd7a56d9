"""What a stage will take before it runs: how it is laid out on its GPUs, memory, floating-point operations and hours.

FLOPs come from `harmon.flops`, memory from `harmon.training.memory`. How much of the peak rate a run reaches is an
assumption until one has run here; 32 A100 in 4 and 8 days (paper, section 4) imply 0.18 at 0.5B and 0.31 at 1.5B.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

from harmon import flops
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.training.activations import Recompute
from harmon.training.device import DEVICES, GIB, Device
from harmon.training.draws import mean_masked_share
from harmon.training.execution import Execution
from harmon.training.memory import Lengths, Memory, micro_batch_memory
from harmon.training.stage import TASKS, StageConfig, Task
from pipelines.errors import ConfigurationError

ASSUMED_MFU = 0.3
AUTO = Execution(parallel="auto")


@dataclass(frozen=True)
class Layout:
    """How a stage is laid out on its GPUs."""

    parallel: str
    """ddp: every GPU holds the model; fsdp: a share of it; hsdp: a share within its group."""
    recompute: Recompute
    micro_rows: int
    """Rows of one forward pass."""
    fits: bool
    shards: int = 1
    """GPUs that hold one copy together."""


@dataclass(frozen=True)
class Mix:
    """What else of a job decides its memory."""

    bf16: bool = True
    """Whether matrix products run in bfloat16 (`autocast`)."""
    average: bool = False
    """Whether an average of the weights is kept."""
    picture: bool = False
    """Whether a text-to-image prompt may be the picture itself."""


@dataclass(frozen=True)
class Forecast:
    """What a stage takes on `workers` of `device`."""

    device: Device
    workers: int
    layout: Layout
    mix: Mix
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
        yield from self.layout_lines()
        yield f"a train step: {self.flops_per_step:.3g} FLOP, {self.seconds_per_step:.2f} s at {self.mfu:.0%} of peak"
        yield f"the stage: {self.hours:,.1f} hours, {self.hours * self.workers:,.0f} GPU-hours"

    def layout_lines(self) -> Iterator[str]:
        """Where everything lies and whether it fits, without what depends on `mfu`."""
        layout, worst = self.layout, max(self.memory.values(), key=lambda one: one.needed)
        groups = f" over groups of {layout.shards}" if layout.parallel == "hsdp" else ""
        yield (
            f"layout on {self.workers} {self.device.name}: {layout.parallel}{groups}, micro-batches of "
            f"{layout.micro_rows} rows, recompute {layout.recompute}, matrix products in "
            f"{'bfloat16' if self.mix.bf16 else 'float32'}"
            + ("" if layout.fits else "; it does not fit: take more GPUs")
        )
        for task, memory in self.memory.items():
            yield f"memory, {task}: {memory.line()}"
        yield f"largest: {worst.needed / GIB:.1f} of {self.device.memory / GIB:.1f} GiB"


def forecast(
    stage: StageConfig,
    model: HarmonConfig,
    workers: int,
    execution: Execution = AUTO,
    mix: Mix = Mix(),
    mfu: float = ASSUMED_MFU,
    fewest: int | None = None,
) -> Forecast:
    """What `stage` takes on `workers` GPUs of the execution's kind, at the share `mfu` of their peak rate; it must fit
    on the `fewest` that there may be (None: they are always so many).

    It is laid out as `execution` says; what that leaves to the memory model is chosen as for the run itself. Memory is
    told at the longest texts that the stage admits, time at usual ones.
    """
    device = DEVICES[execution.gpu]
    layout = layout_of(execution, stage, model, fewest or workers, mix, device)
    memory: dict[str, Memory] = {
        task: _memory(stage, model, task, layout, mix) for task in TASKS if stage.ratio.of(task)
    }
    spent = step_flops(stage, model, Lengths(picture=mix.picture))
    return Forecast(device, workers, layout, mix, memory, spent, mfu, stage.steps)


def resolved(
    execution: Execution, stage: StageConfig, model: HarmonConfig, workers: int, mix: Mix = Mix()
) -> Execution:
    """`execution` with what it leaves to the memory model chosen for `workers`, the fewest that there may be.

    Raises:
        ConfigurationError: nothing fits.
    """
    if execution.parallel != "auto":
        return execution
    layout = layout_of(execution, stage, model, workers, mix, DEVICES[execution.gpu])
    if not layout.fits:
        raise ConfigurationError(
            f"{stage.stage}: the memory model finds no layout that fits on {workers} {execution.gpu}; take more or "
            "larger GPUs, or say how to lay it out in place of `parallel: auto`."
        )
    group = layout.shards if layout.parallel == "hsdp" else None
    chosen = {"parallel": layout.parallel, "shard_workers": group, "recompute": layout.recompute}
    return Execution.model_validate(execution.model_dump() | chosen | {"micro_rows": layout.micro_rows})


def layout_of(
    execution: Execution, stage: StageConfig, model: HarmonConfig, workers: int, mix: Mix, device: Device
) -> Layout:
    """The layout that `execution` names, and whether it fits; `choose_layout` where it names none."""
    if execution.parallel == "auto":
        return choose_layout(stage, model, workers, device, mix, execution.shard_workers)
    share = -(-stage.block_rows // workers)
    shards = {"ddp": 1, "fsdp": workers, "hsdp": execution.shard_workers or workers}[execution.parallel]
    rows = min(share, execution.micro_rows or share)
    layout = Layout(execution.parallel, execution.recompute, rows, True, shards)
    return replace(layout, fits=_needed(stage, model, layout, mix) <= device.memory)


def choose_layout(
    stage: StageConfig,
    model: HarmonConfig,
    workers: int,
    device: Device,
    mix: Mix = Mix(),
    group: int | None = None,
) -> Layout:
    """The first layout that fits: whole copies before shards, shards within groups of `group` GPUs, where they divide
    the workers, before shards over all; keeping everything before computing again; and the most rows at once, fewer
    than a quarter of those that one worker has of a block only where nothing else fits.
    """
    share = -(-stage.block_rows // workers)
    halves, ways = _halves(share), [("ddp", 1)]
    if group is not None and group < workers and workers % group == 0:
        ways.append(("hsdp", group))
    if workers > 1:
        ways.append(("fsdp", workers))
    for sizes in ([rows for rows in halves if 4 * rows >= share], halves):
        for (parallel, shards), recompute, rows in product(ways, get_args(Recompute), sizes):
            layout = Layout(parallel, recompute, rows, True, shards)
            if _needed(stage, model, layout, mix) <= device.memory:
                return layout
    parallel, shards = ways[-1]
    return Layout(parallel, "full", 1, False, shards)


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


def _needed(stage: StageConfig, model: HarmonConfig, layout: Layout, mix: Mix) -> float:
    return max(_memory(stage, model, task, layout, mix).needed for task in TASKS if stage.ratio.of(task))


def _memory(stage: StageConfig, model: HarmonConfig, task: Task, layout: Layout, mix: Mix) -> Memory:
    """At the longest texts, and at the share of masked positions that takes the most."""
    shares = {stage.mask_ratio.low, stage.mask_ratio.high} | ({1.0} if stage.full_mask_share else set())
    told = [
        micro_batch_memory(
            model,
            stage,
            task,
            layout.micro_rows,
            bf16=mix.bf16,
            shards=layout.shards,
            recompute=layout.recompute,
            average=mix.average,
            lengths=Lengths.longest(stage, mix.picture),
            masked_share=share,
        )
        for share in sorted(shares)
    ]
    return max(told, key=lambda one: one.peak)


def _halves(rows: int) -> list[int]:
    halves = [rows]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    return halves
