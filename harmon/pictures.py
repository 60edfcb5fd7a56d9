"""Pictures as the model's pixels and back: crops, padding, and the 256 levels of a drawn one."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harmon.pixels import padded_square_pixels, square_box, square_pixels


def centre_crop(image: Image.Image, px: int) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The centre square resized to `px` (bicubic), [3, px, px] in [-1, 1], and its box in the picture."""
    return unit_pixels(square_pixels(image, px)), square_box(*image.size)


def padded_square(image: Image.Image, px: int) -> NDArray[np.float32]:
    """The whole picture centred on a grey square and resized to `px` (bicubic), [3, px, px] in [-1, 1]."""
    return unit_pixels(padded_square_pixels(image, px))


def unit_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Levels [..., px, px, 3] -> [..., 3, px, px] in [-1, 1]."""
    return np.ascontiguousarray(np.moveaxis(2 * (pixels.astype(np.float32) / 255) - 1, -1, -3))


def levels(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] about [-1, 1] -> uint8 [B, H, W, 3].

    A sampler that diverged gives values that are not numbers: they become grey, not undefined integers.
    """
    scaled = (pixels.permute(0, 2, 3, 1).nan_to_num(0.0, 1.0, -1.0) + 1) * 127.5
    return scaled.clamp(0, 255).round().to(torch.uint8)
