"""Grad-CAM++ (arXiv 1710.11063): where in a picture an encoder's features speak for a class.

Our own few lines in place of the package `grad-cam`: its hooks read a layer inside the network, while here a probe
reads the encoder's last map, so the gradient ends at the map and no pass through the encoder is needed. The package
also adds 1e-6 where gradients of a mean over hundreds of positions, squared, are smaller than that.

The map is the one that the probe pools (of MAR the output of `encoder_norm` without its buffers), behind the probe's
own normalisation: a channel with an offset, negative everywhere, would otherwise speak for nothing.

Shape letters: B batch, D feature width, h w grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from harmon.evaluation.labelled import Box

HEAT = ((0, 12, 60), (40, 60, 200), (30, 180, 170), (245, 220, 60), (225, 40, 30))
"""Colours of a map from 0 to 1, evenly apart."""


def grad_cam(maps_BDhw: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Maps [B, h, w] in [0, 1], 1 at a picture's strongest place (all 0 where nothing speaks for the class).

    `score` [B, D, h, w] -> [B] is what is explained: a class's logit. A gradient g weighs by
    1 / (2 + sum of the map over positions * g), the closed form for exp(score). That form is made for maps that are
    nowhere negative, which a normalised one is not: a map whose sum is negative counts as one whose sum is 0, so that
    no weight can turn around.
    """
    maps = maps_BDhw.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(maps).sum(), maps)
    rising = slope.clamp_min(0)
    total = maps.detach().sum((2, 3), keepdim=True).clamp_min(0)
    weights_BD11 = (rising / (2 + total * rising)).sum((2, 3), keepdim=True)
    found = (weights_BD11 * maps.detach()).sum(1).clamp_min(0)
    peak = found.amax((1, 2), keepdim=True)
    return torch.where(peak > 0, found / peak.clamp_min(torch.finfo(found.dtype).tiny), 0.0)


def overlaid(picture: NDArray[np.uint8], cam_hw: Tensor, strength: float = 0.55) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3], in grey under its map as heat; the map is resized bilinearly."""
    height, width = picture.shape[:2]
    heat = F.interpolate(cam_hw[None, None].float(), (height, width), mode="bilinear", align_corners=False)[0, 0]
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(heat.numpy(), places, channel) for channel in np.array(HEAT).T], -1)
    grey = picture.mean(-1, keepdims=True)
    mixed: NDArray[np.uint8] = ((1 - strength) * grey + strength * colours).round().clip(0, 255).astype(np.uint8)
    return mixed


def points_inside(cam_hw: Tensor, box: Box) -> bool:
    """Whether the centre of the map's strongest position lies in `box`; a map of zeros points nowhere."""
    if not cam_hw.any():
        return False
    row, column = divmod(int(cam_hw.argmax()), cam_hw.shape[1])
    return _inside(row, column, cam_hw.shape, box)


def chance_inside(shape: tuple[int, ...], box: Box) -> float:
    """Share of the positions of a map of `shape` (h, w) whose centres lie in `box`."""
    height, width = shape
    places = [(row, column) for row in range(height) for column in range(width)]
    return sum(_inside(row, column, shape, box) for row, column in places) / len(places)


def _inside(row: int, column: int, shape: tuple[int, ...], box: Box) -> bool:
    x, y = (column + 0.5) / shape[1], (row + 0.5) / shape[0]
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]
