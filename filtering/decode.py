"""Decoding, once for everything that looks at pixels: bounded, and with one answer to bytes that are no picture."""

import io

from PIL import Image

from pipelines.normalise import BROKEN, FORMATS, Limits

MOST_PIXELS = Limits().max_pixels  # of one picture, judged from its header: 192 MB decoded
UNREADABLE = (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning)
"""Whatever Pillow raises on bytes that somebody made up."""


class Undecodable(ValueError):
    """Bytes that are no picture, or of more pixels than are decoded."""


def decoded(data: bytes, mode: str = "RGB", draft: int | None = None) -> Image.Image:
    """An encoded picture in `mode` (RGB, L). With a `draft` side a JPEG may be decoded at half, quarter or eighth size,
    its sides never under that.

    Raises Undecodable, before anything is decoded where there are too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Undecodable(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            if draft is not None:
                image.draft(mode, (draft, draft))
            return image.convert(mode)
    except Undecodable:
        raise
    except UNREADABLE as problem:
        raise Undecodable(f"no picture: {type(problem).__name__} {problem}".strip()) from problem
