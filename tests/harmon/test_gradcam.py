"""Grad-CAM++ points at what a score reads, and nowhere where nothing speaks for it."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harmon.evaluation.encoders import Pooling, pooled_map
from harmon.evaluation.features import Features, batches
from harmon.evaluation.gradcam import chance_inside, grad_cam, overlaid, points_inside
from harmon.evaluation.labelled import LabelledPicture, LabelledSet, png
from harmon.evaluation.probe import ProbeConfig, ProbeHead, probe
from harmon.evaluation.study import StudyConfig, _maps

PX, PATCH = 64, 8


@dataclass(frozen=True)
class Planted:
    """Redness and blueness of each patch among channels of noise, which depend on the picture but on no colour."""

    name: str = "planted"
    stand_in: str = ""
    px: int = PX
    key: str = "planted"

    def maps(self, images: Tensor) -> Tensor:
        cells = F.avg_pool2d(images, PATCH)
        signs = torch.stack([cells[:, 0] - cells[:, 2], cells[:, 2] - cells[:, 0]], 1).clamp_min(0)
        noise = F.avg_pool2d(images.mean(1, keepdim=True) ** 2, PATCH)
        kernel = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(3))
        return torch.cat([F.conv2d(noise, kernel, padding=1), signs], 1)


def square(number: int) -> tuple[LabelledPicture, bytes]:
    """A red or blue square of two patches at a place of its own before grey noise."""
    random = np.random.default_rng(number)
    pixels = random.integers(60, 190, (PX, PX, 1)).repeat(3, 2).astype(np.uint8)
    left, top = (int(one) * PATCH for one in random.integers(0, PX // PATCH - 1, 2))
    red = number % 2 == 0
    pixels[top : top + 2 * PATCH, left : left + 2 * PATCH] = (220, 20, 20) if red else (20, 20, 220)
    data = png(pixels)
    box = (left / PX, top / PX, (left + 2 * PATCH) / PX, (top + 2 * PATCH) / PX)
    return LabelledPicture(partial(bytes, data), "red" if red else "blue", number % 4 < 2, box), data


def test_a_probe_on_planted_features_looks_at_the_planted_place() -> None:
    labelled = LabelledSet("squares", tuple(square(number)[0] for number in range(200)))
    encoder = Planted()
    values = torch.cat([encoder.maps(images).mean((2, 3)) for _, images in batches(encoder, labelled.pictures)])
    features = Features(values.numpy(), tuple(range(200)), 0)
    probed, head = probe("planted", features, labelled, ProbeConfig())
    assert probed.top1.share >= 0.95
    shown = [picture for picture in labelled.pictures if not picture.trains][:4]
    maps = _maps(encoder, head, labelled, shown, StudyConfig(), "cpu")
    assert maps.pointing is not None and maps.pointing.n == 100
    assert maps.pointing.chance == 4 / 64
    assert maps.pointing.share >= 0.95
    assert len(maps.overlays) == 4 and maps.overlays[0].shape == (PX, PX, 3)


def test_the_map_is_the_closed_form_of_the_paper_where_the_features_are_rectified() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    found = grad_cam(maps, lambda one: one.mean((2, 3)) @ weight)
    for row in range(2):
        expected = torch.zeros(4, 4, dtype=torch.float64)
        for channel in range(3):
            slope = weight[channel] / 16  # the same at every position
            alpha = slope**2 / (2 * slope**2 + maps[row, channel].sum() * slope**3)
            expected += 16 * alpha * slope.clamp_min(0) * maps[row, channel]
        torch.testing.assert_close(found[row], expected / expected.max())


def test_the_derivatives_of_the_exponential_are_those_of_the_paper() -> None:
    """The weights of a position follow from second and third derivatives of exp(score), taken here by autograd."""
    value = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def peak(one: Tensor) -> Tensor:
        return torch.exp((one * torch.tensor([0.7, 0.2, 0.9, 0.1])).sum())

    first = torch.autograd.grad(peak(value), value, create_graph=True)[0]
    second = torch.autograd.grad(first[0], value, create_graph=True)[0][0]
    third = torch.autograd.grad(second, value)[0][0]
    alpha = second / (2 * second + value.sum() * third)
    torch.testing.assert_close(alpha, 1 / (2 + value.sum() * 0.7))


@pytest.mark.parametrize("pooling", ["mean", "flat"])
def test_maps_in_the_heads_units_give_the_same_logits(pooling: Pooling) -> None:
    torch.manual_seed(0)
    maps = torch.randn(5, 3, 4, 4) + 7
    read = pooled_map(maps, pooling)
    head = ProbeHead(read.shape[1], 2)
    head.train()(read)  # gives it statistics
    head.eval()
    torch.testing.assert_close(
        head.linear(pooled_map(head.normalised(maps), pooling)), head(read), rtol=1e-4, atol=1e-4
    )


def test_a_score_that_nothing_speaks_for_gives_a_map_of_zeros() -> None:
    maps = torch.rand(1, 2, 3, 3)
    cam = grad_cam(maps, lambda one: -one.mean((1, 2, 3)))
    assert not cam.any() and not points_inside(cam[0], (0.0, 0.0, 1.0, 1.0))


def test_negative_features_turn_no_weight_around() -> None:
    maps = torch.full((1, 1, 2, 2), -50.0)
    maps[0, 0, 1, 0] = 3.0
    cam = grad_cam(maps, lambda one: one.sum((1, 2, 3)))
    assert cam[0].tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert points_inside(cam[0], (0.0, 0.5, 0.5, 1.0)) and not points_inside(cam[0], (0.5, 0.0, 1.0, 1.0))


def test_chance_is_the_share_of_positions_in_the_box() -> None:
    assert chance_inside((4, 4), (0.0, 0.0, 0.5, 0.5)) == 0.25
    assert chance_inside((4, 4), (0.0, 0.0, 0.3, 0.3)) == 1 / 16


def test_an_overlay_is_hot_where_the_map_is_and_cold_elsewhere() -> None:
    picture = np.full((32, 32, 3), 128, dtype=np.uint8)
    cam = torch.zeros(4, 4)
    cam[0, 3] = 1.0
    shown = overlaid(picture, cam).astype(int)
    assert shown[1, 30, 0] > shown[1, 30, 2] + 50  # red where the map is 1
    assert shown[30, 1, 2] > shown[30, 1, 0]  # blue where it is 0
