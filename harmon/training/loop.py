"""The training loop: one flat function that Ray Train, torchrun and a single process all run.

Samples, masks, timesteps and noise are the same for any number of workers. Drop-out is seeded by (step, worker): with
a model that has any, another number of workers gives another, equally valid, draw of it.

Shape letters: B batch, L text length, N image positions, S image slots of the LLM, Z decoder width.
"""

import json
import math
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
from harmon.training.failure import FinalError
from harmon.training.guard import Guard, largest
from harmon.training.job import (
    DONE,
    ROWS,
    Notice,
    TrainJob,
    file_hash,
    metrics_lines,
    stage_folder,
    stage_store,
    training_key,
)
from harmon.training.micro import MicroBatches
from harmon.training.mixture import Block, blocks_of_step, cursors
from harmon.training.optimiser import Gradient, make_optimiser, rate_factor, set_rates, trained_parameters
from harmon.training.parallel import at_hand, prepare
from harmon.training.profile import Profile
from harmon.training.sources import SourceLosses
from harmon.training.speed import Speed, peak_memory, peak_of_all
from harmon.training.stage import TASKS
from harmon.training.standing import CHECKPOINTS, completed, recall, write_done
from harmon.training.weights import load_weights, own_tensors, whole
from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError

PROBE_ROWS = 32
Report = Callable[[dict[str, Any]], None]


def train(
    job: TrainJob,
    key: str | None = None,
    report: Report | None = None,
    told: Callable[[], Notice] | None = None,
    until: int | None = None,
) -> Path:
    """Train one stage to its end, or to a checkpoint of train step `until`, and return its folder; goes on from the
    latest complete checkpoint.

    Workers are those of the torch.distributed group, if one is initialised. `key` is `training_key(job)`
    where the caller has it already. Every worker calls `report` with each line of metrics, at the same steps. All ask
    `told` in the same step, about every second, whether their machine is about to be taken away: "save" writes a
    checkpoint at once, "stop" also ends.

    Raises:
        FinalError: every step is skipped for longer than the guard's patience, or the folder is another training's.
        HarmonError: the data or weights do not fit, or training was told to stop.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stage, key = job.stage, key or training_key(job)
    folder = stage_folder(job, key)
    checkpoints = Checkpoints(folder / CHECKPOINTS, job.keep, stage_store(job, key))
    ended, start = checkpoints.decided(lambda: _start(job, key, checkpoints))
    if ended:
        return folder
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
    data = StageData(stage, job.mixture, job.model, ChatText(job.tokenizer), job.latents, folder / ROWS)
    blank = None if mesh is None else partial(blank_batch, stage, job.model, job.mixture)
    micro = MicroBatches(world, job.execution.micro_rows, blank, packs=job.execution.pack)
    probe = data.images(Block("text2image", 0, PROBE_ROWS), range(PROBE_ROWS)) if stage.ratio.text2image else None

    def tensors() -> dict[str, Tensor]:
        """All that a checkpoint keeps, by name; loading one writes into them."""
        kept = {f"model/{name}": value for name, value in own_tensors(model).items() if value.numel()}
        for name, parameter in trained.items():
            kept |= {f"moment/{name}/{part}": value for part, value in optimiser.state[parameter].items()}
        if average:
            kept |= {f"average/{name}": value for name, value in average.tensors.items()}
        return kept | {f"guard/{name}": value for name, value in guard.state.items()}

    speed = Speed.of(stage, job.model, data.lengths(), peak_of_all(device, world)) if rank == 0 else None
    profiler = Profile(job.execution.profile, folder / "profile", rank)

    first, last = start, min(stage.steps, until or stage.steps)
    if first:
        checkpoints.load(first, tensors())
    if rank == 0:
        _forget_after(folder, first)
    metrics = folder / "metrics.jsonl"

    # Since the last line of metrics: each task's loss sum and count over this worker's rows, the clocks, and what the
    # guard said of each step. The host reads nothing off the device before the next line.
    sums = torch.zeros(2, len(TASKS), dtype=torch.float64, device=device)
    verdicts: list[Tensor] = []
    sources = SourceLosses(job.mixture, [task for task in TASKS if stage.ratio.of(task)], device)
    data_seconds, samples, since = 0.0, 0, time.perf_counter()
    noticed, notices = "go on", Notices(told)
    for step in range(first, last):
        # -- one train step ----------------------------------------------------------------------------------
        profiler.before(step + 1)
        notices.begin()
        torch.manual_seed(stream(stage.seed, stage.stage, "dropout", step, rank) % 2**63)
        clock = time.perf_counter()
        blocks = blocks_of_step(stage, step)
        batches = [data.batch(block, rank, world) for block in blocks]
        data_seconds += time.perf_counter() - clock

        counts = step_counts(blocks, batches, device)
        gradient.zero()
        step_sums, step_loss = torch.zeros_like(sums), torch.zeros((), dtype=dtype, device=device)
        for part in micro.parts(blocks, batches):
            task = TASKS.index(part.block.task)
            share = sum(block.task == part.block.task for block in blocks) / len(blocks)
            factor = stage.loss_weight.of(part.block.task) * share / counts[task].clamp(min=1.0)
            with torch.autocast(device.type, torch.bfloat16, enabled=job.autocast is not None):
                losses = loss_sum(model, part.batch, dtype, device, job.execution.pack)
            loss = losses.total
            if part.stands_in:
                loss = loss * 0.0
            else:
                sources.add(part.block.task, part.batch, losses.per_sample)
            weighted = loss * factor.to(loss.dtype)
            weighted.backward()  # type: ignore[no-untyped-call]
            step_loss += weighted.detach()
            step_sums[0, task] += loss.detach()
            step_sums[1, task] += 0 if part.stands_in else part.batch.count
        loss, norm = largest(*gradient.reduce(step_loss))
        skip = guard.judge(loss, norm)
        gradient.clip(norm, stage.clip_norm)
        rates = set_rates(optimiser, rate_factor(stage, step))
        optimiser.found_inf = skip  # type: ignore[attr-defined]  # 1: the fused kernel leaves all as it is
        optimiser.step()
        if average:
            average.update()
        sums += step_sums.masked_fill(skip > 0, 0.0)
        verdicts.append(skip)
        sources.end_step(skip)
        samples += stage.global_batch

        # -- once in a while ---------------------------------------------------------------------------------
        finished = step + 1
        profiler.after(finished, ends=finished == last)
        before, noticed = noticed, notices.heard()
        saves = finished % job.checkpoint_every == 0 or finished == last or noticed not in (before, "go on")
        if finished % job.log_every == 0 or saves:
            if dist.is_initialized():
                dist.all_reduce(sums)
            seconds = time.perf_counter() - since
            line: dict[str, Any] = {
                "step": finished,
                "workers": world,
                "loss": {task: (s / n).item() for task, s, n in zip(TASKS, *sums, strict=True) if n},
                "source_loss": sources.told(),
                "source_epochs": data.epochs(cursors(stage, finished)),
                "rejected": data.rejected_since(device),
                "rate": rates,
                "gradient_norm": norm.item(),
                "masked": [batch.masked / data.tokens for batch in batches if isinstance(batch, ImageBatch)],
                "samples": (seen := cursors(stage, finished)),
                "ratio": {task: number / sum(seen.values()) for task, number in seen.items()},
                "samples_per_second": samples / seconds,
                "data_share": data_seconds / seconds,
                "peak_memory": peak_memory(device),
            }
            line |= speed.measures(samples / seconds) if speed else {}
            if skipped := torch.stack(verdicts).nonzero()[:, 0].tolist():
                line["skipped"] = [finished - len(verdicts) + 1 + place for place in skipped]
            if probe:
                with at_hand(model):
                    line["text_sensitivity"] = text_sensitivity(model, probe, dtype, device)
            line = _finite(line)
            if rank == 0:
                with metrics.open("a") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
            if report:
                report(line)
            if guard.exhausted():
                raise FinalError(
                    f"{stage.stage}, step {finished}: loss or gradient was not finite, or a spike, for "
                    f"{job.guard.patience} steps in a row; lower the learning rate or look at the data."
                )
            sums.zero_()
            verdicts.clear()
            data_seconds, samples, since = 0.0, 0, time.perf_counter()
        if saves:
            stands = cursors(stage, finished)
            now = TrainState(step=finished, key=key, cursors=stands, contents=contents, metrics=line)
            plain = {MODEL: whole(own_tensors(model), keep=rank == 0)}
            if average:
                plain[AVERAGE] = plain[MODEL] | whole(average.tensors, keep=rank == 0)
            # a machine that is about to go must not go before the checkpoint stands
            checkpoints.save(now, tensors(), plain, behind=job.save_behind and noticed == "go on")
        if noticed == "stop":
            raise HarmonError(f"{stage.stage} was told to stop and saved step {finished}; run it again to go on.")
    checkpoints.wait()
    data.close()
    if rank == 0 and last == stage.steps:
        _finish(folder, key, job, data, checkpoints)
    if dist.is_initialized():
        dist.barrier()
    return folder


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


@torch.no_grad()
def text_sensitivity(model: Harmon, batch: ImageBatch, dtype: torch.dtype, device: torch.device) -> float:
    """How much the decoder's output varies with the prompt when every position is masked: the root mean
    square of its deviation over prompts, relative to its own. 0: the text has no effect.
    """
    training = model.training
    model.eval()
    tokens_BNC, grid = model.to_tokens(batch.latents.to(device, dtype))
    everything_BN, nothing_B0 = batch.order.to(device), batch.order[:, :0].to(device)
    x_BSD, image_BSH = model.visual_features(tokens_BNC, grid, nothing_B0)
    hidden_BSH = model.read_after_text(batch.text_ids.to(device), batch.text_mask.to(device), image_BSH)
    z_BNZ = model.mar.decode(model.inform(x_BSD, hidden_BSH), grid, nothing_B0, everything_BN.sort(1).values)
    model.train(training)
    return float((z_BNZ - z_BNZ.mean(0)).square().mean().sqrt() / z_BNZ.square().mean().sqrt())


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


def _start(job: TrainJob, key: str, checkpoints: Checkpoints) -> tuple[bool, int]:
    """At rank 0, for all: whether nothing is left to train, and else the train step to go on from."""
    if completed(job, key):
        return True, job.stage.steps
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    latest = checkpoints.latest()
    if latest is None:
        return False, 0
    state = checkpoints.state(latest)
    if state.step != latest or state.key != key or state.cursors != cursors(job.stage, latest):
        where = stage_store(job, key) or stage_folder(job, key)
        raise FinalError(f"Checkpoint {latest} in {where} belongs to another training; remove it.")
    checkpoints.bring(latest)
    return False, latest


def _finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _forget_after(folder: Path, step: int) -> None:
    """Drop the lines of metrics beyond the checkpoint that training goes on from: those steps come again."""
    kept = [line for line in metrics_lines(folder) if line["step"] <= step]
    attempt = folder / "metrics.jsonl.writing"
    attempt.write_text("".join(json.dumps(line) + "\n" for line in kept))
    attempt.replace(folder / "metrics.jsonl")


def _finish(folder: Path, key: str, job: TrainJob, data: StageData, checkpoints: Checkpoints) -> None:
    """Say that the stage is done, of the weights of its last step and no others."""
    checkpoint = checkpoints.folder / f"{job.stage.steps:06d}"
    record = {"key": key, "stage": job.stage.stage, "steps": job.stage.steps, "checkpoint": checkpoint.name}
    record |= {"left_out": data.left_out, "weights": file_hash(checkpoint / MODEL)}
    said = canonical_json(record)
    if checkpoints.store is not None:
        checkpoints.store.set_record(said)
    write_done(folder, said)
