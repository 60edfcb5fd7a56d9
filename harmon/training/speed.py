"""How fast a stage trains: samples a second as tokens, FLOP and share of the devices' peak; and peak memory."""

import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from harmon.model.config import HarmonConfig
from harmon.training.device import peak_of
from harmon.training.draws import mean_masked_share
from harmon.training.forecast import step_flops
from harmon.training.memory import Lengths
from harmon.training.stage import TASKS, StageConfig, Task


@dataclass(frozen=True)
class Speed:
    """What one sample of a stage is, on average over the stage's ratio."""

    flops: float
    """With the gradient, from stored latents, without what is computed again."""
    tokens: float
    """That the language model reads: text, visible positions and buffers."""
    peak: float | None
    """FLOP a second of all workers together."""

    @classmethod
    def of(cls, stage: StageConfig, model: HarmonConfig, lengths: Lengths, peak: float | None = None) -> "Speed":
        """Of `stage` with texts of these mean `lengths`."""
        shares = {task: stage.ratio.of(task) for task in TASKS}
        tokens = sum(share * _tokens(stage, model, task, lengths) for task, share in shares.items())
        flops = step_flops(stage, model, lengths) / stage.global_batch
        return cls(flops, tokens / sum(shares.values()), peak)

    def measures(self, samples_per_second: float) -> dict[str, float]:
        """For a line of metrics."""
        spent = samples_per_second * self.flops
        told = {"tokens_per_second": samples_per_second * self.tokens, "flops_per_second": spent}
        return told | ({"mfu": spent / self.peak} if self.peak else {})


def peak_of_all(device: torch.device, workers: int) -> float | None:
    """FLOP a second of `workers` devices like this worker's; None on a CPU, or where the device is not known."""
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else workers * peak


def peak_memory(device: torch.device) -> int:
    """Bytes that this worker has taken at most: its tensors on a CUDA device, else the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        said = Path("/proc/self/status").read_text()
    except OSError:  # no Linux; macOS tells bytes. On Linux this would be the parent's where that was larger
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (one for one in said.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _tokens(stage: StageConfig, model: HarmonConfig, task: Task, lengths: Lengths) -> float:
    positions, buffers = model.tokens(*[stage.px // model.latent_stride] * 2), model.mar.buffer_size
    if task == "text2image":
        return lengths.prompt + buffers + positions * (1 - mean_masked_share(stage))
    if task == "image2text":
        return lengths.question + lengths.labelled + model.slots(*[stage.px // model.latent_stride] * 2)
    return lengths.text
