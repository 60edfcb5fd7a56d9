"""Pictures that a request carries. Nothing is fetched: a server that followed a stranger's links would reach, for them,
whatever stands in its own network."""

import base64
import binascii
import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harmon.pictures import padded_square
from harmon.serving.refusal import Refused
from pipelines.normalise import BadPicture, Limits, normalise

LONGEST = 4  # pixels of the square that a picture is padded to, for each that it may have
_HEAD = re.compile(r"data:image/[a-z0-9.+-]{1,40};base64,", re.IGNORECASE)


def pixels_of(url: str, max_pixels: int, side: int) -> NDArray[np.float32]:
    """The picture of a `data:image/...;base64,` URL as the model sees it, [3, side, side] in [-1, 1].

    Upright, on white and in sRGB, as downloaded pictures are; then padded and resized as for training.

    Raises:
        Refused: it is another kind of URL, or no picture, or one of more than `max_pixels`.
    """
    head = _HEAD.match(url[:64])
    if not head:
        raise _refused(
            f"a picture must come as data:image/png;base64,... within the request; this begins {url[:16]!r}, and "
            "nothing is fetched from elsewhere"
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
        stored = normalise(data, Limits(max_pixels=max_pixels))
        if max(stored.width, stored.height) ** 2 > LONGEST * max_pixels:
            raise _refused(f"the picture of {stored.width} x {stored.height} pixels is too long and narrow")
        with Image.open(io.BytesIO(stored.data)) as opened:
            return padded_square(opened.convert("RGB"), side)
    except binascii.Error:
        raise _refused("what follows base64, is not base64") from None
    except BadPicture as error:
        raise _refused(f"the picture cannot be read ({error}); send a whole PNG, JPEG or WebP of at most "
                       f"{max_pixels:,} pixels") from None  # fmt: skip


def _refused(why: str) -> Refused:
    return Refused(400, f"image_url: {why}.", param="messages", code="invalid_image")
