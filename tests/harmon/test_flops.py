"""The cost formulas against torch's own counter, on models of several shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_model import ODD, VOCABULARY, odd_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from harmon import flops
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.plain_flops import plain_sample_flops, plain_stage_flops
from harmon.sampling import generate
from harmon.sampling_config import SamplingConfig
from harmon.text import IGNORED, IMAGE_SLOT
from harmon.training.stage import load_stage

WIDE = ODD.model_copy(
    update={
        "llm": ODD.llm.model_copy(update={"num_hidden_layers": 3, "num_key_value_heads": 2}),
        "mar": ODD.mar.model_copy(update={"encoder_depth": 3, "decoder_depth": 1, "patch_size": 2}),
    }
)
MODELS = pytest.mark.parametrize("config", [ODD, WIDE], ids=["odd", "wide"])


def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def counted(work: Callable[[], object]) -> int:
    """torch's count, which does not know the CPU's fused attention by itself."""
    aten = torch.ops.aten
    cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=cpu) as counter:
        work()
    return int(counter.get_total_flops())


def latents(config: HarmonConfig, grid: Grid, rows: int = 1) -> torch.Tensor:
    patch = config.mar.patch_size
    return torch.randn(rows, config.mar.latent_channels, grid.height * patch, grid.width * patch)


@MODELS
@pytest.mark.parametrize(("grid", "masked"), [(Grid(4, 4), 13), (Grid(3, 5), 15)])
@pytest.mark.parametrize("train_llm", [True, False])
def test_a_text_to_image_sample_costs_what_torch_counts(
    config: HarmonConfig, grid: Grid, masked: int, train_llm: bool
) -> None:
    model = odd_model(config=config)
    model.llm.requires_grad_(train_llm)
    repeats, positions = config.head.batch_mul, grid.positions
    work = counted(
        lambda: model.text_to_image_loss(
            latents(config, grid, 2),
            torch.randint(VOCABULARY, (2, 9)),
            torch.ones(2, 9, dtype=torch.bool),
            torch.stack([torch.randperm(positions) for _ in range(2)]),
            masked,
            torch.randint(1000, (repeats, 2, positions)),
            torch.randn(repeats, 2, positions, config.mar.token_channels),
        ).total.backward()
    )
    parts = flops.text_to_image(config, grid, masked, text=9, train_llm=train_llm)
    assert 2 * flops.total(parts) == pytest.approx(work, rel=0.01)


@MODELS
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(2, 7), None])
def test_a_sample_with_answers_costs_what_torch_counts(config: HarmonConfig, grid: Grid | None) -> None:
    model = odd_model(config=config)
    slots = grid.positions + config.mar.buffer_size if grid else 0
    ids = torch.cat([torch.full((2, slots), IMAGE_SLOT), torch.randint(VOCABULARY, (2, 11))], 1)
    labels = ids.clone()
    labels[:, :-6] = IGNORED
    picture = latents(config, grid, 2) if grid else None
    work = counted(lambda: model.image_to_text_loss(picture, ids, labels).total.backward())
    assert 2 * flops.total(flops.image_to_text(config, grid, text=11, labelled=6)) == pytest.approx(work, rel=0.01)


@MODELS
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(ar_steps=4, diffusion_steps="7"),
        SamplingConfig(ar_steps=20, cfg=1.0, diffusion_steps="3,2"),
        SamplingConfig(ar_steps=5, diffusion_steps="9", diffusion_steps_last=2, cfg_every=2),
        SamplingConfig(ar_steps=5, diffusion_steps="4", cfg_interval=(0.3, 0.9), cfg_schedule="linear"),
        SamplingConfig(ar_steps=6, diffusion_steps="3", refresh_every=3),
        SamplingConfig(ar_steps=8, diffusion_steps="2", refresh_every=4, cfg_every=3, cfg_interval=(0.2, 0.8)),
    ],
)
def test_a_generated_image_costs_what_torch_counts(config: HarmonConfig, sampling: SamplingConfig) -> None:
    model, grid = odd_model(config=config), Grid(3, 4)
    rows, patch = (1 if sampling.cfg == 1 else 2), config.mar.patch_size
    ids = torch.randint(VOCABULARY, (rows, 6))
    sides = (3 * patch, 4 * patch)
    work = counted(lambda: generate(model, ids, torch.ones_like(ids), sides, **sampling.arguments()))
    assert flops.total(flops.generated_image(config, grid, 6, sampling)) == pytest.approx(work, rel=0.01)


@pytest.mark.parametrize(
    "config",
    [
        KlConfig(base_channels=32, res_blocks=1),
        KlConfig(base_channels=32, channel_multipliers=(1, 2, 2), latent_channels=8, res_blocks=2),
    ],
)
def test_the_autoencoder_costs_what_torch_counts(config: KlConfig) -> None:
    autoencoder = KlAutoencoder(config).requires_grad_(False)
    stride = config.stride
    encoding = counted(lambda: autoencoder.encode(torch.zeros(1, 3, 3 * stride, 2 * stride)))
    decoding = counted(lambda: autoencoder.decode(torch.zeros(1, config.latent_channels, 3, 2)))
    model = ODD
    sample = flops.text_to_image(model, Grid(3, 2), 4, 5, config)
    image = flops.generated_image(model, Grid(3, 2), 5, SamplingConfig(ar_steps=1, diffusion_steps="2"), config)
    assert sample["autoencoder"] == pytest.approx(encoding, rel=0.01)
    assert image["autoencoder"] == pytest.approx(decoding, rel=0.01)


@pytest.mark.parametrize(("preset", "tera"), [("harmon-0.5b", 0.937), ("harmon-1.5b", 3.37)])
def test_a_published_sample_costs_about_what_the_plain_formula_says(preset: str, tera: float) -> None:
    """MODEL.md's plain count has every row of the head and all of each last layer: ours must lie below, not far."""
    config = HarmonConfig.preset(preset)
    ours = flops.total(flops.text_to_image(config, Grid(16, 16), 222, 64, KlConfig())) / 1e12
    assert 0.85 * tera < ours < tera


@pytest.mark.parametrize(
    ("preset", "samples", "stages"),
    [
        ("harmon-0.5b", (0.937, 1.48, 2.81, 4.24, 1.55), (2.29e20, 2.30e20, 1.52e20)),
        ("harmon-1.5b", (3.37, 4.95, 9.80, 13.91, 4.81), (7.98e20, 7.96e20, 5.20e20)),
    ],
)
def test_the_plain_count_is_that_of_the_projects_notes_within_2_percent(
    preset: str, samples: tuple[float, ...], stages: tuple[float, ...]
) -> None:
    """reference/MODEL.md, section 4: tera-FLOP of a sample at 256 and 512 px, and FLOP of the three stages."""
    config, small, large = HarmonConfig.preset(preset), load_stage("stage2"), load_stage("stage3")
    ours = [
        plain_sample_flops(stage, config, task) for stage in (small, large) for task in ("text2image", "image2text")
    ]
    ours.append(plain_sample_flops(small, config, "text"))
    assert [one / 1e12 for one in ours] == pytest.approx(samples, rel=0.02)
    found = [plain_stage_flops(load_stage(f"stage{number}"), config) for number in (1, 2, 3)]
    assert found == pytest.approx(stages, rel=0.02)
