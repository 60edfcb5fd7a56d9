"""Making a picture smaller: the one thing that may change its bytes."""

import io
from typing import NamedTuple

from PIL import Image
from pydantic import Field

from filtering.buckets import BUCKET
from filtering.decode import Undecodable, decoded
from filtering.header import read_header
from pipelines.errors import HarmonError
from pipelines.settings import Settings

OF_BYTES = ("header", "hash", "pdq", "latents", BUCKET)
"""Column groups that say something of a picture's very bytes or size, and nothing true of a smaller one."""


def is_of_bytes(group: str) -> bool:
    """Whether a column group is no longer true of a picture that was made smaller."""
    return group.partition(".")[0] in OF_BYTES


class Resized(NamedTuple):
    """An encoded picture and its size in pixels."""

    data: bytes
    extension: str
    width: int
    height: int


class Resize(Settings):
    """Pictures larger than this are made smaller; none is enlarged, and the others keep their bytes."""

    shorter_side: int = Field(ge=16)
    """Pixels."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of JPEG. What was PNG stays PNG; what was WebP becomes JPEG."""

    def apply(self, data: bytes, extension: str, key: str) -> Resized:
        """The picture as it is written. Raises HarmonError where it cannot be decoded."""
        header = read_header(data)
        if header is not None and 0 < min(header.width, header.height) <= self.shorter_side:
            return Resized(data, extension, header.width, header.height)
        try:
            image = decoded(data)
        except Undecodable as problem:
            raise HarmonError(
                f"The picture {key} cannot be made smaller ({problem}); drop it first with a rule on a column that "
                "decodes, such as `hash` or `clarity`."
            ) from problem
        scale = self.shorter_side / min(image.size)
        if scale >= 1:
            return Resized(data, extension, *image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        smaller = image.resize(size, Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if extension == "png":
            smaller.save(out, "PNG")
            return Resized(out.getvalue(), "png", *size)
        smaller.save(out, "JPEG", quality=self.quality, subsampling=0)
        return Resized(out.getvalue(), "jpg", *size)
