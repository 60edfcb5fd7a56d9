"""What the paper's stages cost by the plain count, by which the utilisation of its GPUs is derived.

`harmon.flops` counts what this system computes. The plain count is that of a whole, dense implementation, as the
project's notes on the model have it (reference/MODEL.md, section 4): every linear layer of every position forward and
twice more backward, the LLM's attention half because it is causal, all positions four times in the head, the LLM
trained in every stage, pictures encoded while training.
"""

from harmon import flops
from harmon.model.autoencoder import KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.training.draws import mean_masked_share
from harmon.training.memory import Lengths
from harmon.training.stage import TASKS, StageConfig, Task

LENGTHS = Lengths()


def plain_stage_flops(stage: StageConfig, model: HarmonConfig, lengths: Lengths = LENGTHS) -> float:
    """FLOPs of the whole stage."""
    shares = {task: stage.ratio.of(task) for task in TASKS}
    one = sum(share * plain_sample_flops(stage, model, task, lengths) for task, share in shares.items() if share)
    return stage.steps * stage.global_batch * one / sum(shares.values())


def plain_sample_flops(stage: StageConfig, model: HarmonConfig, task: Task, lengths: Lengths = LENGTHS) -> float:
    """Training FLOPs of one sample of `task`."""
    side, word = stage.px // model.latent_stride // model.mar.patch_size, 2.0 * model.llm.hidden_size
    grid, label = Grid(side, side), word * model.llm.vocab_size
    if task == "text":
        return 3 * (_llm(model, lengths.text) + label * lengths.text)
    encoding = flops.picture_encoding(KlConfig(), *(one * model.mar.patch_size for one in grid))
    if task == "image2text":
        slots, text = model.mar.buffer_size + grid.positions, lengths.question + lengths.labelled
        seen = flops.encoder_part(model, grid.positions).forward + flops.projection_part(model, slots).forward
        return 3 * (seen + _llm(model, text + slots) + label * lengths.labelled) + encoding
    visible = grid.positions - round(grid.positions * mean_masked_share(stage))
    slots, rows = model.mar.buffer_size + visible, grid.positions * model.head.batch_mul
    drawn = flops.encoder_part(model, visible).forward + 2 * flops.projection_part(model, slots).forward
    drawn += _llm(model, lengths.prompt + slots) + flops.decoder_part(model, grid.positions, slots, None).forward
    return 3 * (drawn + flops.head_part(model, rows, rows, rows).forward) + encoding


def _llm(model: HarmonConfig, length: int) -> float:
    told = flops.llm_part(model, length, length, length)
    return told.linear + told.attention / 2
