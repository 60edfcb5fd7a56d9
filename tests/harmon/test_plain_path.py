"""At sizes unlike the published ones, the model computes what a plain path over Transformers' Qwen2 computes."""

import pytest
import torch
from odd_model import ODD, VOCABULARY, odd_model
from torch import Tensor

from benchmarks import plain
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.sampling import generate, plan
from harmon.text import IGNORED, IMAGE_SLOT

OTHER = ODD.model_copy(
    update={
        "llm": ODD.llm.model_copy(update={"num_hidden_layers": 3, "num_key_value_heads": 4, "rope_theta": 5e4}),
        "mar": ODD.mar.model_copy(
            update={"encoder_width": 36, "encoder_depth": 3, "decoder_width": 20, "decoder_heads": 2}
            | {"decoder_depth": 1, "buffer_size": 11, "patch_size": 2, "latent_channels": 3, "native_grid": 5}
        ),
        "head": ODD.head.model_copy(update={"depth": 1, "width": 24, "sampling_steps": "6,0,1,2"}),
    }
)
SIZES = pytest.mark.parametrize("config", [ODD, OTHER], ids=["odd", "other"])


class Recorded:
    """One order and noise for both paths."""

    def __init__(self, order: Tensor, noises: list[Tensor]) -> None:
        self.order, self.noises = order, iter(noises)

    def orders(self, images: int, positions: int) -> Tensor:
        return self.order

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        return next(self.noises)


def latents_of(config: HarmonConfig, rows: int) -> Tensor:
    side = config.mar.native_grid * config.mar.patch_size
    return torch.randn(rows, config.mar.latent_channels, side, side)


def close(ours: Tensor, theirs: Tensor, relative: float) -> None:
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


@SIZES
@pytest.mark.parametrize("respacing", [None, "10,5", "ddim10"])
def test_generation_is_the_plain_paths(config: HarmonConfig, respacing: str | None) -> None:
    model, side, images = odd_model(config=config), config.mar.native_grid, 2
    torch.manual_seed(1)
    ids, mask = torch.randint(VOCABULARY, (4, 7)), torch.arange(7) < torch.tensor([[7], [4], [5], [5]])
    order = torch.stack([torch.randperm(side**2) for _ in range(images)])
    chain = respacing or config.head.sampling_steps
    length = 10 if chain == "ddim10" else sum(map(int, chain.split(",")))
    noises = [
        torch.randn(length, images, turn.masked - turn.masked_next, config.mar.token_channels)
        for turn in plan(side**2, 4, 2.5, "constant")
    ]
    autoencoder = KlAutoencoder(KlConfig(base_channels=32, res_blocks=1, latent_channels=config.mar.latent_channels))
    theirs, _ = plain.generate(model, autoencoder.eval(), ids, mask, Grid(side, side), 4, 2.5, chain, order, noises)
    sides = (side * config.mar.patch_size,) * 2
    ours = generate(model, ids, mask, sides, steps=4, cfg=2.5, diffusion_steps=respacing, draws=Recorded(order, noises))
    close(ours, theirs, 1e-4)  # the tolerance of the reference's whole samples


@SIZES
def test_both_losses_are_the_plain_paths(config: HarmonConfig) -> None:
    model, positions, repeats = odd_model(config=config), config.mar.native_grid**2, config.head.batch_mul
    torch.manual_seed(2)
    latents, ids = latents_of(config, 2), torch.randint(VOCABULARY, (2, 7))
    draws = (
        torch.stack([torch.randperm(positions) for _ in range(2)]),
        positions - 3,
        torch.randint(1000, (repeats, 2, positions)),
        torch.randn(repeats, 2, positions, config.mar.token_channels),
    )
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    loss = model.text_to_image_loss(latents, ids, mask, *draws)
    close(loss.total / loss.count, plain.text_to_image_loss(model, latents, ids, mask, *draws), 1e-5)
    slots = torch.full((2, positions + config.mar.buffer_size), IMAGE_SLOT)
    asked = torch.cat([ids[:, :2], slots, ids[:, 2:]], 1)
    seen = torch.arange(asked.shape[1]) < torch.tensor([[asked.shape[1]], [asked.shape[1] - 2]])
    labels = torch.where(seen, asked, IGNORED)
    labels[:, :-4] = IGNORED
    loss = model.image_to_text_loss(latents, asked, labels)
    close(loss.total / loss.count, plain.image_to_text_loss(model, latents, asked, labels, seen), 1e-5)
