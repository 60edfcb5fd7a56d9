"""Squares of a picture as 256 levels; no torch, so that a process that only decodes starts in a moment."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY = (127, 127, 127)  # release: colour of the padding


def square_pixels(image: Image.Image, px: int, at: float = 0.5) -> NDArray[np.uint8]:
    """A square as large as the picture, resized to `px` (bicubic), [px, px, 3]; `at` as in `square_box`."""
    return _resized(image.crop(square_box(image.width, image.height, at)), px)


def square_box(width: int, height: int, at: float = 0.5) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest square of a picture, `at` from 0 to 1 along its longer side."""
    side = min(width, height)
    left, top = int((width - side) * at), int((height - side) * at)
    return left, top, left + side, top + side


def padded_square_pixels(image: Image.Image, px: int) -> NDArray[np.uint8]:
    """The whole picture centred on a grey square and resized to `px` (bicubic), [px, px, 3]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return _resized(square, px)


def _resized(square: Image.Image, px: int) -> NDArray[np.uint8]:
    return np.asarray(square.resize((px, px), Image.Resampling.BICUBIC))
