"""Both readings redraw every position, from the features they say, with noise that follows from the seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import make_autoencoder, tiny_model
from skimage.metrics import peak_signal_noise_ratio
from small_checkpoints import make_run

from harmon.evaluation.encoders import MarEncoder, frozen, trained_encoders
from harmon.evaluation.reconstruction import (
    READINGS,
    Closeness,
    Reading,
    ReconstructionConfig,
    mean_closeness,
    reconstruct,
    redraw,
)
from harmon.latents import load_autoencoder
from harmon.model.mar import Grid, Mar
from harmon.parts.fidelity import pixels
from harmon.pictures import levels
from harmon.trained import load
from pipelines.scenes import make_scene

CONFIG = ReconstructionConfig(diffusion_steps="4", clip_x0=2.0)
GRID = Grid(4, 4)


@pytest.fixture
def encoder(tmp_path: Path) -> MarEncoder:
    config = tiny_model()
    torch.manual_seed(0)
    mar = Mar(config.mar, config.head)
    with torch.no_grad():
        for parameter in mar.diffloss.parameters():  # a fresh head answers zero to everything
            parameter.add_(0.1 * torch.randn_like(parameter))
    autoencoder = load_autoencoder(make_autoencoder(tmp_path / "patch_latent.safetensors"))
    return MarEncoder("mar", frozen(mar), frozen(autoencoder), 64)


def scenes(number: int) -> torch.Tensor:
    return pixels([make_scene(5, index, split="unseen") for index in range(number)], 64)


@pytest.mark.parametrize("reading", READINGS)
def test_a_picture_is_redrawn_alike_alone_and_among_others(encoder: MarEncoder, reading: Reading) -> None:
    tokens, _ = encoder.tokens(scenes(3))
    together = redraw(encoder, tokens, GRID, reading, CONFIG, ["a", "b", "c"])
    alone = redraw(encoder, tokens[1:2], GRID, reading, CONFIG, ["b"])
    assert together.shape == tokens.shape and together.abs().gt(0).all()
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-5)
    other = redraw(encoder, tokens, GRID, reading, CONFIG.model_copy(update={"seed": 1}), ["a", "b", "c"])
    assert not torch.allclose(other, together)


def test_the_first_reading_sees_each_token_and_the_second_never_its_own(encoder: MarEncoder) -> None:
    """Asked by gradients: does what is drawn at a position depend on the token that stood there?"""
    config = CONFIG.model_copy(update={"clip_x0": None})
    tokens, _ = encoder.tokens(scenes(1))
    for reading, depends in (("visible", True), ("left_out", False)):
        asked = tokens.clone().requires_grad_(True)
        with torch.enable_grad():
            drawn = redraw(encoder, asked, GRID, reading, config, ["a"])  # type: ignore[arg-type]
        for position in (0, 5, 15):
            (slope,) = torch.autograd.grad(drawn[0, position].sum(), asked, retain_graph=True)
            assert bool(slope[0, position].abs().sum() > 0) is depends
            assert slope.abs().sum() > 0


def test_groups_part_the_positions(encoder: MarEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden: list[torch.Tensor] = []
    decode = encoder.mar.decode

    def noting(x: torch.Tensor, grid: Grid, visible: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        assert not set(visible[0].tolist()) & set(predicted[0].tolist())
        hidden.append(predicted[0])
        return decode(x, grid, visible, predicted)

    monkeypatch.setattr(encoder.mar, "decode", noting)
    redraw(encoder, encoder.tokens(scenes(1))[0], GRID, "left_out", CONFIG.model_copy(update={"groups": 3}), ["a"])
    assert [len(one) for one in hidden] == [6, 5, 5]
    assert sorted(torch.cat(hidden).tolist()) == list(range(16))


def test_the_bound_is_the_autoencoder_and_the_floor_one_colour(encoder: MarEncoder) -> None:
    images = scenes(2)
    found = reconstruct(encoder, images, CONFIG, ["a", "b"])
    assert set(found[0].made) == {"flat", "autoencoder", "visible", "left_out"}
    decoded = levels(encoder.autoencoder.decode(encoder.autoencoder.encode(images))).numpy()
    assert np.array_equal(found[1].made["autoencoder"], decoded[1])
    assert np.array_equal(found[1].original, levels(images)[1].numpy())
    assert len(np.unique(found[0].made["flat"].reshape(-1, 3), axis=0)) == 1
    means = mean_closeness(found)
    assert means["autoencoder"].psnr > means["flat"].psnr and means["autoencoder"].ssim > means["flat"].ssim


def test_a_trained_harmon_is_also_read_through_its_language_model(tmp_path: Path) -> None:
    encoder = trained_encoders(load(make_run(tmp_path / "run")), "run")[0]
    assert isinstance(encoder, MarEncoder)
    found = reconstruct(encoder, scenes(1), CONFIG, ["a"])[0]
    assert set(found.made) >= {"visible, through the LLM", "left_out, through the LLM"}
    assert not np.array_equal(found.made["visible"], found.made["visible, through the LLM"])


def test_closeness_is_scikit_images() -> None:
    random = np.random.default_rng(0)
    original = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    other = (original * 0.8).astype(np.uint8)
    close = Closeness.of(other, original)
    assert close.psnr == pytest.approx(peak_signal_noise_ratio(original, other, data_range=255))
    assert Closeness.of(original, original) == Closeness(float("inf"), 1.0)
    assert close.ssim < 1
