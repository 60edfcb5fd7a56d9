"""Samples a second as tokens a second, FLOP a second and, where the device's peak is known, MFU."""

from dataclasses import dataclass

from harmon.model.config import HarmonConfig
from harmon.training.draws import mean_masked_share
from harmon.training.forecast import step_flops
from harmon.training.memory import Lengths
from harmon.training.stage import TASKS, StageConfig, Task

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16, by what a CUDA device's name contains


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


def peak_of(device_name: str) -> float | None:
    """Peak rate of one CUDA device of this name, None where it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def _tokens(stage: StageConfig, model: HarmonConfig, task: Task, lengths: Lengths) -> float:
    positions, buffers = model.tokens(*[stage.px // model.latent_stride] * 2), model.mar.buffer_size
    if task == "text2image":
        return lengths.prompt + buffers + positions * (1 - mean_masked_share(stage))
    if task == "image2text":
        return lengths.question + lengths.labelled + buffers + positions
    return lengths.text
