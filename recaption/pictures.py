"""An image at the size that the model needs: decoded once here, so that the server only reads it."""

import io
import math

from PIL import Image, ImageOps

from pipelines.normalise import BROKEN
from pipelines.shards import ImageShard
from recaption.prompt import Picture

MOST_PIXELS = 1 << 28  # of an image that is decoded at all: 1 GB of RGB with a copy
MOST_ASPECT = 200.0  # of the longer to the shorter side, as in Qwen2-VL's own processor


def picture(data: bytes, size: Picture) -> bytes | None:
    """The encoded image as a JPEG of `fitting_size`, upright and in RGB on white; None where it cannot be had.

    That is: bytes that do not decode, over MOST_PIXELS, or a side MOST_ASPECT times the other.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            width, height = _upright_size(image)
            if max(width, height) > MOST_ASPECT * min(width, height):
                return None
            fitting = fitting_size(width, height, size)
            if image.format == "JPEG":  # decoded at a half, a quarter or an eighth where that is still enough
                image.draft("RGB", (max(fitting), max(fitting)))
            upright = _on_white(ImageOps.exif_transpose(image))
    except (*BROKEN, Image.DecompressionBombError):
        return None
    out = io.BytesIO()
    upright.resize(fitting, Image.Resampling.BICUBIC, reducing_gap=2.0).save(out, "JPEG", quality=size.quality)
    return out.getvalue()


def stored_picture(images: ImageShard | None, key: str, size: Picture) -> bytes | None:
    """`picture` of the image of this key in a shard that is open; None also where there is none."""
    stored = images.find(key) if images else None
    return picture(stored.data, size) if stored else None


def fitting_size(width: int, height: int, size: Picture) -> tuple[int, int]:
    """Width and height in pixels: multiples of `size.multiple`, the aspect kept, the area within the bounds.

    The rule of Qwen2-VL's processor (smart_resize), so that the server has nothing left to scale.
    """
    step = size.multiple
    wide, high = (round(side / step) * step for side in (width, height))
    if wide * high > size.max_pixels:
        shrink = math.sqrt(width * height / size.max_pixels)
        wide, high = (max(step, math.floor(side / shrink / step) * step) for side in (width, height))
    elif wide * high < size.min_pixels:
        grow = math.sqrt(size.min_pixels / (width * height))
        wide, high = (math.ceil(side * grow / step) * step for side in (width, height))
    return wide, high


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF orientations that swap the sides
    return (image.height, image.width) if turned else (image.width, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")
