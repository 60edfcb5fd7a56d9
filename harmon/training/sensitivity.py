"""How much a text matters to what is drawn."""

import torch

from harmon.model.harmon import Harmon
from harmon.training.data import ImageBatch


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
