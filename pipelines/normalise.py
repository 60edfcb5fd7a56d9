"""Turns fetched bytes into a stored picture: checked, upright, 8-bit RGB; untouched wherever that is already
true.

Rules, where bytes must change: EXIF orientation is applied; greyscale, CMYK and palette become RGB; alpha is
laid on white; 16-bit samples keep their high byte; colours under an ICC profile are converted to sRGB, without which
the same numbers would be other colours, and the profile goes; of an animation the first frame stays; formats other than
JPEG, PNG and WebP become PNG. What was JPEG is encoded again as JPEG (quality 95, no chroma subsampling),
everything else as PNG. Where a short side is asked for, larger pictures are reduced to it with a Lanczos filter (in
linear steps of the stored values, as torchvision and img2dataset do) and encoded again, JPEG and WebP as JPEG; smaller
ones stay as they are. A JPEG that is much too large is decoded at a half, quarter or eighth of its size first, which
libjpeg does exactly within its blocks: never to less than three times the size wanted, so that the filter decides.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipelines.settings import Settings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # MPO: a JPEG with more pictures behind it
ORIENTATION = 0x0112  # EXIF tag
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode to the colour space of a profile that fits it
JPEG_QUALITY = 95
DRAFT_GAP = 3  # decoded at least so many times the size wanted: 45 dB or more from filtering all pixels (measured)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of this EXIF orientation upright (Exif 2.3, tag 0x0112)."""
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged input: its decoders, and its EXIF when that is read or written again."""


class Limits(Settings):
    """How large a decoded picture may be, and how large it is stored."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """Width times height, judged from the header before anything is decoded."""
    short_side: int | None = Field(default=None, ge=1)
    """Pixels of the shorter side to which larger pictures are reduced (512 serves all three stages of the paper); None:
    pictures keep their size."""

    @model_serializer(mode="wrap")
    def _plain(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a short side where none is asked for, so that datasets made before it existed keep their keys."""
        return {name: value for name, value in dump(self).items() if name != "short_side" or value is not None}


@dataclass(frozen=True)
class Picture:
    """A picture as it is stored; `data` decodes to [height, width] 8-bit RGB."""

    data: bytes
    extension: str
    width: int
    height: int


class BadPicture(Exception):
    """Bytes that give no picture: `not_an_image`, `truncated` or `too_large`, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def normalise(data: bytes, limits: Limits) -> Picture:
    """The stored form of fetched bytes.

    Raises:
        BadPicture: the bytes are no picture of a known format, are incomplete, or exceed the limits.
    """
    with warnings.catch_warnings():  # Pillow tells what it could mend; our limits and reasons do
        warnings.simplefilter("ignore")
        return _normalised(data, limits)


def _normalised(data: bytes, limits: Limits) -> Picture:
    image = _opened(data)
    if image.width * image.height > limits.max_pixels:
        raise BadPicture("too_large", f"{image.width} x {image.height} pixels")
    try:
        target = reduced_size(image.size, limits)
        image = decoded(image, target)
        return _small(image, target) if target else _stored(image, data)
    except BROKEN as error:
        raise BadPicture("truncated" if _is_cut(error) else "not_an_image", _said(error)) from None


def _stored(image: Image.Image, data: bytes) -> Picture:
    """The stored form of a decoded picture; raises what BROKEN lists where its EXIF or mode is damaged."""
    kind, orientation = image.format or "", image.getexif().get(ORIENTATION, 1)
    if kind in EXTENSIONS and image.mode == "RGB" and orientation == 1 and not _needs_conversion(image, data):
        return Picture(data, EXTENSIONS[kind], image.width, image.height)
    return _encoded(_rgb(ImageOps.exif_transpose(image)), "JPEG" if kind in {"JPEG", "MPO"} else "PNG")


def reduced_size(size: tuple[int, int], limits: Limits) -> tuple[int, int] | None:
    """The size to reduce a picture to, or None where it stays; the longer side is rounded to the nearest pixel."""
    if limits.short_side is None or min(size) <= limits.short_side:
        return None
    width, height = (max(limits.short_side, round(side * limits.short_side / min(size))) for side in size)
    return width, height


def decoded(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    """`image` with its pixels: of a JPEG that is to be reduced to `target`, as few as serve the filter."""
    if target and image.format in {"JPEG", "MPO"}:
        image.draft(None, (target[0] * DRAFT_GAP, target[1] * DRAFT_GAP))
    image.load()
    return image


def reduced(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """A decoded picture as 8-bit RGB of the size `target`."""
    return _rgb(image).resize(target, Image.Resampling.LANCZOS)


def _small(image: Image.Image, target: tuple[int, int]) -> Picture:
    """A decoded picture reduced to `target` (which is meant before it is turned upright) and encoded."""
    kind, orientation = image.format or "", image.getexif().get(ORIENTATION, 1)
    small = reduced(image, target)
    turned = small.transpose(TURNS[orientation]) if orientation in TURNS else small
    return _encoded(turned, "JPEG" if kind in {"JPEG", "MPO", "WEBP"} else "PNG")


def _opened(data: bytes) -> Image.Image:
    """The picture with its header read, nothing decoded."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture("too_large", "more pixels than any picture has") from None
    except BROKEN:
        pass
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise BadPicture("truncated", "fewer bytes than the WebP header announces")
    start = data.lstrip()[:1]
    seen = "no bytes" if not data else "it begins like HTML" if start == b"<" else "no known picture format"
    raise BadPicture("not_an_image", seen)


def _needs_conversion(image: Image.Image, data: bytes) -> bool:
    """Whether an RGB picture has more in it: a transparent colour, frames, or 16-bit samples."""
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    deep = image.format == "PNG" and data[24:25] == b"\x10"  # bit depth, in the header that every PNG begins with
    return animated or deep or "transparency" in image.info


def _rgb(image: Image.Image) -> Image.Image:
    """`image` in 8-bit sRGB, without a profile."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        is_grey = image.mode in {"L", "LA", "La", "1"}
        layer = image.convert("RGBA")
        alpha, image = layer.getchannel("A"), layer.getchannel("R") if is_grey else layer.convert("RGB")
    elif image.mode in {"P", "1"}:
        image = image.convert("RGB" if image.mode == "P" else "L")
    if profile and (managed := _to_srgb(profile, image.mode)) is not None:
        image = ImageCms.applyTransform(image, managed)  # type: ignore[assignment]  # None only where it is in place
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    image.info.pop("icc_profile", None)  # Pillow would write it into a PNG
    return image


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What takes colours of this mode from their profile to sRGB.

    None where they are sRGB already, and where the profile is damaged or is one for other colours.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != SPACES.get(mode) or (
            mode == "RGB" and ImageCms.getProfileDescription(source).startswith("sRGB")
        ):
            return None
        return ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _encoded(image: Image.Image, kind: str) -> Picture:
    out = io.BytesIO()
    if kind == "JPEG":
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(out, "PNG")
    return Picture(out.getvalue(), EXTENSIONS[kind], image.width, image.height)


def _is_cut(error: Exception) -> bool:
    return isinstance(error, EOFError) or any(word in str(error).lower() for word in ("truncated", "unexpected end"))


def _said(error: Exception) -> str:
    return str(error).split("(")[0].strip()[:200] or type(error).__name__
