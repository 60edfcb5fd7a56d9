"""Encoded pictures made into the squares that training sees; nothing here loads torch unless its resizer is asked for.

A plain JPEG is decoded by simplejpeg, which is libjpeg-turbo without Pillow's copies, and whose pixels are Pillow's,
also at a half or less of the side. What it refuses, and every other format, is Pillow's to decode or to refuse.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from harmon.pixels import GREY, padded_square_pixels, square_box, square_pixels
from pipelines.dataset import Dataset
from pipelines.shards import ImageShard

OPEN_SHARDS = 64  # shards that a process keeps open
UNDECODABLE, NO_IMAGE = "undecodable", "no_image"
Pixels = NDArray[np.uint8]  # [px, px, 3]
Resizer = Literal["pillow", "torch"]


@dataclass(frozen=True)
class Wanted:
    """One picture as a sample wants it."""

    dataset: str
    shard: int
    key: str
    px: int
    padded: bool
    """The whole picture on a grey square; else a square of it."""
    at: float = 0.5
    """Where that square lies along the longer side: 0 begins it at one end, 1 at the other, 0.5 is the centre."""
    draft: bool = False
    resizer: Resizer = "pillow"


@dataclass(frozen=True)
class Rejected:
    """Why there is no picture."""

    reason: str
    """no_image, undecodable or ends_its_decoder."""
    detail: str = ""
    """What the decoder said."""


Decoded = list[Pixels | Rejected]


def decode(wanted: Sequence[Wanted]) -> Decoded:
    """The pictures `wanted`, or why there are none.

    Raises HarmonError where a shard itself cannot be read: that is no matter of one picture.
    """
    return [_one(one) for one in wanted]


def square(data: bytes, wanted: Wanted) -> Pixels:
    """The square that `wanted` describes, of an encoded picture. Raises whatever a decoder may, at wrong bytes."""
    with Image.open(io.BytesIO(data)) as opened:  # reads the header alone, and judges the size
        shrink = shrunk_by(opened.size, wanted.px) if wanted.draft else 1
        pixels = _plain_jpeg(data, opened, shrink)
        if pixels is None:
            if shrink > 1:  # other formats than JPEG know no draft and stay whole
                opened.draft("RGB", (opened.width // shrink, opened.height // shrink))
            pixels = np.array(opened.convert("RGB"))
    return _by_torch(pixels, wanted) if wanted.resizer == "torch" else _by_pillow(pixels, wanted)


def shrunk_by(size: tuple[int, int], px: int) -> int:
    """The largest of 1, 2, 4 and 8 by which a JPEG of this size may be decoded smaller while its shorter side stays at
    least twice `px`; 1 where it is smaller than that already.
    """
    most = max(1, min(size) // (2 * px))
    return max(factor for factor in (1, 2, 4, 8) if factor <= most)


def _one(wanted: Wanted) -> Pixels | Rejected:
    image = _shard(wanted.dataset, wanted.shard).find(wanted.key)
    if image is None:
        return Rejected(NO_IMAGE)
    try:
        return square(image.data, wanted)
    except Exception as error:  # a decoder may raise anything at bytes that are wrong, and is told apart by no class
        return Rejected(UNDECODABLE, f"{type(error).__name__}: {error}"[:200])


def _plain_jpeg(data: bytes, opened: Image.Image, shrink: int) -> Pixels | None:
    """[H, W, 3] of a JPEG of one colour or three; None for anything else, and for what simplejpeg calls damaged."""
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):
        return None
    height, width = -(-opened.height // shrink), -(-opened.width // shrink)
    try:
        least = (height, width) if shrink > 1 else (0, 0)
        pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
    except ValueError:
        return None  # Pillow mends some of it, and says what is wrong with the rest
    return pixels if pixels.shape == (height, width, 3) else None


def _by_pillow(pixels: Pixels, wanted: Wanted) -> Pixels:
    if wanted.padded:
        return padded_square_pixels(Image.fromarray(pixels), wanted.px)
    return square_pixels(Image.fromarray(_cut(pixels, wanted.at)), wanted.px)


def _by_torch(pixels: Pixels, wanted: Wanted) -> Pixels:
    import torch

    cut = _on_grey(pixels) if wanted.padded else _cut(pixels, wanted.at)
    planes = torch.from_numpy(cut).permute(2, 0, 1)[None]
    size = (wanted.px, wanted.px)
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
    small: Pixels = resized[0].permute(1, 2, 0).numpy()
    return small


def _cut(pixels: Pixels, at: float) -> Pixels:
    left, top, right, bottom = square_box(pixels.shape[1], pixels.shape[0], at)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def _on_grey(pixels: Pixels) -> Pixels:
    """The whole picture in the middle of a square, as in `padded_square_pixels`."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    whole = np.full((side, side, 3), GREY, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    whole[top : top + height, left : left + width] = pixels
    return whole


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(dataset: str, number: int) -> ImageShard:
    return _dataset(dataset).images(number)


@lru_cache(maxsize=64)
def _dataset(root: str) -> Dataset:
    return Dataset(root)
