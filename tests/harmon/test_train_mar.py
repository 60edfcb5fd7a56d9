"""The tiny MAR: what pretraining shows it, and that the committed weights are what they are said to be."""

import pytest
import torch
from safetensors.torch import load_file

from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.model.mar import Grid, Mar
from harmon.model.patch_latent import PatchLatent
from harmon.parts import train_mar
from pipelines.scenes import HELD_OUT_PAIRS, make_scene
from pipelines.scenes.scene import trained_pairs
from tests.parts import need

PRESENT = train_mar.MAR_FILE.is_file()
ABSENT = f"{train_mar.MAR_FILE} is not there; run python -m harmon.parts.train_mar"


@pytest.fixture(scope="module")
def config() -> HarmonConfig:
    torch.set_num_threads(1)
    return HarmonConfig.from_file(train_mar.DEMO / "harmon.yaml")


def test_no_class_is_a_held_out_pair(config: HarmonConfig) -> None:
    assert len(train_mar.CLASSES) == config.mar.class_count
    assert {(colour, shape) for _, colour, shape in train_mar.CLASSES} == set(trained_pairs())
    assert not set(trained_pairs()) & HELD_OUT_PAIRS


def test_a_picture_has_the_sum_of_its_objects_class_vectors() -> None:
    vectors = train_mar.ClassVectors(8)
    scenes = [make_scene(3, index) for index in range(12)]
    rows = dict(zip(train_mar.CLASSES, vectors.rows(), strict=True))
    for row, scene in enumerate(scenes):
        expected = torch.stack([rows[item.place, item.colour, item.shape] for item in scene.objects]).sum(0)
        torch.testing.assert_close(vectors(*train_mar.what_stands_where(scenes))[row], expected)


def test_positions_start_more_alike_the_nearer_they_are(config: HarmonConfig) -> None:
    mar = Mar(config.mar, config.head)
    buffers = mar.encoder_pos_embed_learned[:, : config.mar.buffer_size].detach().clone()
    train_mar.start_as_waves(mar, 4)
    table = mar.encoder_pos_embed_learned[0, config.mar.buffer_size :].detach()
    apart = torch.cdist(table, table)
    corner, beside, below, far = 0, 1, 4, 15
    assert apart[corner, beside] == pytest.approx(float(apart[corner, below]))
    assert 0 < apart[corner, beside] < apart[corner, far]
    assert torch.equal(mar.encoder_pos_embed_learned[:, : config.mar.buffer_size], buffers)


def test_the_fake_latent_as_class_gives_the_encoder_harmon_uses(config: HarmonConfig) -> None:
    torch.manual_seed(0)
    mar = Mar(config.mar, config.head)
    tokens, visible = torch.randn(2, 16, 16), torch.tensor([[1, 5], [0, 9]])
    classed = train_mar.encode(mar, tokens, Grid(4, 4), visible, mar.fake_latent.expand(2, -1))
    torch.testing.assert_close(classed, mar.encode(tokens, Grid(4, 4), visible))


def test_the_committed_weights_fit_the_demos_model(config: HarmonConfig) -> None:
    need(PRESENT, ABSENT)
    weights = load_file(train_mar.MAR_FILE)
    own = {name: value.shape for name, value in Harmon(config).state_dict().items() if name.startswith("mar.")}
    assert {name: value.shape for name, value in weights.items()} == own
    assert train_mar.MAR_FILE.stat().st_size <= 8 << 20


def test_the_committed_weights_draw_the_colour_of_their_class(config: HarmonConfig) -> None:
    need(PRESENT, ABSENT)
    quality = train_mar.measure(train_mar.MAR_FILE, 64, number=48)
    assert quality["one_object"]["colour"]["share"] >= 0.7


def test_pictures_come_as_tokens_of_both_sides(config: HarmonConfig) -> None:
    latent = PatchLatent.from_file(train_mar.DEMO / "patch_latent.safetensors")
    pictures = train_mar.make_pictures(latent, [make_scene(3, index) for index in range(3)])
    assert pictures.tokens[64].shape == (3, 16, 16)
    assert pictures.tokens[128].shape == (3, 64, 16)
