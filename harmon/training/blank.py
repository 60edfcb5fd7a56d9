"""The smallest batch of a task, of nothing: what a worker runs, without weight, to keep in step with the others."""

import torch

from harmon.model.config import HarmonConfig
from harmon.text import IGNORED, IMAGE_SLOT
from harmon.training.data import ChatBatch, ImageBatch
from harmon.training.mixture import Mixture
from harmon.training.stage import StageConfig, Task

TOKEN = 0  # every vocabulary has it


def blank_batch(stage: StageConfig, model: HarmonConfig, mixture: Mixture, task: Task) -> ImageBatch | ChatBatch:
    """One row of zeros that takes the same forward and backward passes as any batch of `task` in this stage.

    It depends on nothing but configuration, so it is there at every step, on every worker, after every resume.
    """
    side = stage.px // model.latent_stride
    positions, latents = model.tokens(side, side), torch.zeros(1, model.mar.latent_channels, side, side)
    if task == "text2image":
        timesteps = torch.zeros(model.head.batch_mul, 1, positions, dtype=torch.int64)
        return ImageBatch(
            latents=latents,
            text_ids=torch.full((1, 1), TOKEN),
            text_mask=torch.ones(1, 1, dtype=torch.bool),
            order=torch.arange(positions).unsqueeze(0),
            masked=1,
            timesteps=timesteps,
            noise=torch.zeros(*timesteps.shape, model.mar.token_channels),
            pictured=mixture.pictured,
        )
    slots = model.slots(side, side) if task == "image2text" else 0
    if slots and model.understanding_channels is not None:
        seen = model.understanding_grid or side
        latents = torch.zeros(1, model.understanding_channels, seen, seen)
    ids = torch.tensor([[IMAGE_SLOT] * slots + [TOKEN, TOKEN]])
    labels = torch.tensor([[IGNORED] * (slots + 1) + [TOKEN]])
    return ChatBatch(latents=latents if slots else None, input_ids=ids, labels=labels)
