"""Pictures as the model's pixels and back: crops, padding, and the 256 levels of a drawn one."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

GREY = (127, 127, 127)  # release: colour of the padding


def centre_crop(image: Image.Image, px: int) -> tuple[NDArray[np.float32], tuple[int, int, int, int]]:
    """The centre square resized to `px` (bicubic), [3, px, px] in [-1, 1], and its box in the picture."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return _pixels(image.crop(box), px), box


def padded_square(image: Image.Image, px: int) -> NDArray[np.float32]:
    """The whole picture centred on a grey square and resized to `px` (bicubic), [3, px, px] in [-1, 1]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _pixels(square, px)


def levels(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] about [-1, 1] -> uint8 [B, H, W, 3].

    A sampler that diverged gives values that are not numbers: they become grey, not undefined integers.
    """
    scaled = (pixels.permute(0, 2, 3, 1).nan_to_num(0.0, 1.0, -1.0) + 1) * 127.5
    return scaled.clamp(0, 255).round().to(torch.uint8)


def _pixels(image: Image.Image, px: int) -> NDArray[np.float32]:
    resized = np.asarray(image.resize((px, px), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.ascontiguousarray((2 * (resized / 255) - 1).transpose(2, 0, 1))
