"""The training loop: one flat function that Ray Train, torchrun and a single process all run.

Samples, masks, timesteps and noise are the same for any number of workers. Drop-out is seeded by (step, worker): with
a model that has any, another number of workers gives another, equally valid, draw of it.

Shape letters: B batch, L text length, N image positions, S image slots of the LLM, Z decoder width.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harmon.model.harmon import Harmon, LossSum
from harmon.model.transfer import sent
from harmon.seeds import stream
from harmon.text import ChatText
from harmon.training.agreement import Notices
from harmon.training.average import Average
from harmon.training.blank import blank_batch
from harmon.training.checkpoint import AVERAGE, MODEL, Checkpoints, TrainState
from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.failure import FinalError, ToldToStop
from harmon.training.guard import Guard, largest
from harmon.training.hold import Hold
from harmon.training.job import (
    DONE,
    METRICS,
    ROWS,
    Notice,
    TrainJob,
    stage_folder,
    stage_store,
    training_key,
)
from harmon.training.meter import Meter
from harmon.training.metrics import append_line, finite
from harmon.training.micro import MicroBatches
from harmon.training.mixture import Block, blocks_of_step, cursors
from harmon.training.optimiser import Gradient, make_optimiser, rate_factor, set_rates, trained_parameters
from harmon.training.parallel import at_hand, prepare
from harmon.training.profile import Profile
from harmon.training.sensitivity import text_sensitivity
from harmon.training.stage import TASKS
from harmon.training.standing import CHECKPOINTS, begun, completed, finish, recall
from harmon.training.weights import load_weights, own_tensors, whole
from pipelines.errors import HarmonError

PROBE_ROWS = 32
Report = Callable[[dict[str, Any]], None]


def train(
    job: TrainJob,
    key: str | None = None,
    report: Report | None = None,
    told: Callable[[], Notice] | None = None,
    until: int | None = None,
    owner: str | None = None,
) -> Path:
    """Train one stage to its end, or to a checkpoint of train step `until`, and return its folder; goes on from the
    latest complete checkpoint.

    Workers are those of the torch.distributed group, if one is initialised. `key` is `training_key(job)`
    where the caller has it already. Every worker calls `report` with each line of metrics, at the same steps. All ask
    `told` in the same step, about every second, whether their machine is about to be taken away: "save" writes a
    checkpoint at once, "stop" also ends. Rank 0 holds the stage against other trainers; `owner` as in `Hold`.

    Raises:
        FinalError: every step is skipped for longer than the guard's patience, the folder is another training's, or
            another trainer is at it.
        ToldToStop: training was told to stop, and has saved.
        HarmonError: the data or weights do not fit.
    """
    key = key or training_key(job)
    folder = stage_folder(job, key)
    store = stage_store(job, key)
    hold = Hold(folder, owner, store)
    checkpoints = Checkpoints(folder / CHECKPOINTS, job.keep, store, check=lambda: hold.check(now=True))
    if checkpoints.decided(lambda: completed(job, key) is not None):
        return folder
    checkpoints.decided(hold.take)
    try:
        _train(job, key, checkpoints, hold, report, told, until)
    finally:
        hold.leave()
    return folder


def _train(
    job: TrainJob,
    key: str,
    checkpoints: Checkpoints,
    hold: Hold,
    report: Report | None,
    told: Callable[[], Notice] | None,
    until: int | None,
) -> None:
    """The loop of `train`, on the stage that `hold` holds."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stage, folder = job.stage, stage_folder(job, key)
    first = checkpoints.decided(lambda: begun(job, key, checkpoints))
    last = min(stage.steps, until or stage.steps)
    contents = checkpoints.decided(job.contents)
    dtype, device = getattr(torch, job.dtype), torch.device(job.device)

    torch.manual_seed(stream(stage.seed, stage.stage, "initial weights") % 2**63)
    model = Harmon(job.model)
    load_weights(model, [Path(file) for file in job.weights])
    model.to(device, dtype).train()
    trained_parameters(model, stage)
    mesh = prepare(model, job.execution)
    trained = trained_parameters(model, stage)  # sharding has replaced them
    optimiser = make_optimiser(stage, trained)
    gradient = Gradient(trained, mesh)
    guard = Guard(job.guard, device)
    average = Average(trained, job.average) if job.average else None
    data = StageData(
        stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents, folder / ROWS, job.understanding
    )
    blank = None if mesh is None else partial(blank_batch, stage, job.model, job.mixture)
    micro = MicroBatches(world, job.execution.micro_rows, blank, packs=job.execution.pack)
    probe = data.images(Block("text2image", 0, PROBE_ROWS), range(PROBE_ROWS)) if stage.ratio.text2image else None
    profiler = Profile(job.execution.profile, folder / "profile", rank)

    def tensors() -> dict[str, Tensor]:
        """All that a checkpoint keeps, by name; loading one writes into them."""
        kept = {f"model/{name}": value for name, value in own_tensors(model).items() if value.numel()}
        for name, parameter in trained.items():
            kept |= {f"moment/{name}/{part}": value for part, value in optimiser.state[parameter].items()}
        if average:
            kept |= {f"average/{name}": value for name, value in average.tensors.items()}
        return kept | {f"guard/{name}": value for name, value in guard.state.items()}

    if first:
        checkpoints.load(first, tensors())
    meter, notices = Meter(data, device), Notices(told)  # the clock of the first line starts here
    noticed: Notice = "go on"
    for step in range(first, last):
        # -- one train step ----------------------------------------------------------------------------------
        profiler.before(step + 1)
        notices.begin()
        torch.manual_seed(stream(stage.seed, stage.stage, "dropout", step, rank) % 2**63)
        clock = time.perf_counter()
        blocks = blocks_of_step(stage, step)
        batches = [data.batch(block, rank, world) for block in blocks]
        meter.read(time.perf_counter() - clock)

        counts = step_counts(blocks, batches, device)
        gradient.zero()
        step_loss = torch.zeros((), dtype=dtype, device=device)
        for part in micro.parts(blocks, batches):
            task = part.block.task
            share = sum(block.task == task for block in blocks) / len(blocks)
            factor = stage.loss_weight.of(task) * share / counts[TASKS.index(task)].clamp(min=1.0)
            with torch.autocast(device.type, torch.bfloat16, enabled=job.autocast is not None):
                losses = loss_sum(model, part.batch, dtype, device, job.execution.pack)
            meter.add(part, losses)
            loss = losses.total * 0.0 if part.stands_in else losses.total
            weighted = loss * factor.to(loss.dtype)
            weighted.backward()  # type: ignore[no-untyped-call]
            step_loss += weighted.detach()
        loss, norm = largest(*gradient.reduce(step_loss))
        skip = guard.judge(loss, norm)
        gradient.clip(norm, stage.clip_norm)
        rates = set_rates(optimiser, rate_factor(stage, step))
        optimiser.found_inf = skip  # type: ignore[attr-defined]  # 1: the fused kernel leaves all as it is
        optimiser.step()
        if average:
            average.update(skip)
        meter.end_step(skip)

        # -- once in a while ---------------------------------------------------------------------------------
        finished = step + 1
        profiler.after(finished, ends=finished == last)
        before, noticed = noticed, notices.heard()
        saves = finished % job.checkpoint_every == 0 or finished == last or noticed not in (before, "go on")
        if finished % job.log_every == 0 or saves:
            line = meter.line(finished, rates, norm, batches)
            if probe:
                with at_hand(model):
                    line["text_sensitivity"] = text_sensitivity(model, probe, dtype, device)
            line = finite(line)
            if rank == 0:
                append_line(folder, line)
            if report:
                report(line)
            if spent := guard.spent():
                raise FinalError(
                    f"{stage.stage}, step {finished - spent + 1}: loss or gradient was not finite, or a spike, for "
                    f"{job.guard.patience} steps in a row; lower the learning rate or look at the data."
                )
        if saves:
            checkpoints.decided(hold.check)
            stands = cursors(stage, finished)
            now = TrainState(step=finished, key=key, cursors=stands, contents=contents, metrics=line)
            plain = {MODEL: whole(own_tensors(model), keep=rank == 0)}
            if average:
                plain[AVERAGE] = plain[MODEL] | whole(average.tensors, keep=rank == 0)
            lines = (folder / METRICS).read_bytes() if rank == 0 else b""
            # a machine that is about to go must not go before the checkpoint stands
            checkpoints.save(now, tensors(), plain, behind=job.save_behind and noticed == "go on", lines=lines)
        if noticed == "stop" and finished < last:
            raise ToldToStop(f"{stage.stage} was told to stop and saved step {finished}; run it again to go on.")
    checkpoints.wait()
    data.close()
    if rank == 0 and last == stage.steps:
        finish(job, key, data.left_out, checkpoints)
    if dist.is_initialized():
        dist.barrier()


def step_counts(
    blocks: Sequence[Block], batches: Sequence[ImageBatch | ChatBatch | None], device: torch.device
) -> Tensor:
    """Masked positions or labelled tokens of each task in one train step, summed over all workers: float64 [tasks].

    It lies on `device`, since NCCL sums nothing on the CPU.
    """
    counts = torch.zeros(len(TASKS), dtype=torch.float64)
    for block, batch in zip(blocks, batches, strict=True):
        counts[TASKS.index(block.task)] += batch.count if batch else 0
    counts = sent(counts, device)
    if dist.is_initialized():
        dist.all_reduce(counts)
    return counts


def loss_sum(
    model: Harmon, batch: ImageBatch | ChatBatch, dtype: torch.dtype, device: torch.device, pack: bool = False
) -> LossSum:
    """A batch's losses, summed over its masked positions or labelled tokens: of all its rows, and of each.

    `pack` as in Execution.
    """

    def moved(value: Tensor) -> Tensor:
        value = sent(value, device)
        return value.to(dtype) if value.is_floating_point() else value

    if isinstance(batch, ImageBatch):
        return model.text_to_image_loss(
            moved(batch.latents),
            moved(batch.text_ids),
            moved(batch.text_mask),
            moved(batch.order),
            batch.masked,
            moved(batch.timesteps),
            moved(batch.noise),
            pictured=batch.pictured,
        )
    latents = None if batch.latents is None else moved(batch.latents)
    scale = model.config.grad_scale
    return model.image_to_text_loss(latents, batch.input_ids, batch.labels, grad_scale=scale, packed=pack)


def final_weights(folder: Path, store: str | None = None) -> Path:
    """The weights file of a finished stage, brought from its `store` where another machine trained it.

    Raises:
        HarmonError: the stage has not finished, or its last checkpoint is gone.
    """
    recall(folder, store)
    if not (folder / DONE).exists():
        raise HarmonError(f"The stage in {folder} has not finished; train it first.")
    weights: Path = folder / CHECKPOINTS / json.loads((folder / DONE).read_bytes())["checkpoint"] / MODEL
    if not weights.exists():
        raise HarmonError(f"The weights {weights} are gone; put them back, or delete {folder / DONE} and train again.")
    return weights
