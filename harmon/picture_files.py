"""A drawn picture as a file that says how to draw it again.

The PNG's text chunk `harmon` holds the record as JSON: with the same weights it reproduces the picture, bit
for bit in a batch of the same size and within one level in any other.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import Field

from harmon.sampling_config import SamplingConfig
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse

CHUNK = "harmon"
FRAME_MS = 120
LAST_FRAME_MS = 2000
Variant = Literal["single", "release-batch"]
Dtype = Literal["float32", "bfloat16"]


class PictureRecord(Settings):
    """Everything that a picture depends on."""

    prompt: str
    negative: str | None = None
    """What the guidance leads away from; None: the prompt without a caption, as in training."""
    seed: int
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    variant: Variant = "single"
    """`release-batch` ends the prompt with a full stop, as the release's batch script does and its
    single-image script does not (MODEL.md section 5, item 15)."""
    sampling: SamplingConfig
    """Of a picture that was drawn: with its diffusion steps named."""
    weights: str
    """Fingerprint of the model as stored (harmon.convert.contents.Contents), whatever `dtype` it ran in."""
    dtype: Dtype = "float32"
    """Float type of the weights as the model ran."""
    version: Literal[1] = 1
    """Raised when the same record would draw another picture."""

    @property
    def caption(self) -> str:
        """The prompt as the model is given it."""
        return f"{self.prompt.strip()}." if self.variant == "release-batch" else self.prompt

    @property
    def file_name(self) -> str:
        """Some of the prompt, the seed, and 8 digits of all of the record."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:40].rstrip("-") or "picture"
        return f"{slug}-{self.seed}-{sha256_hex(canonical_json(self.model_dump(mode='json')))[:8]}.png"

    @property
    def animation_name(self) -> str:
        return self.file_name.removesuffix(".png") + ".steps.webp"


def png_of(pixels: NDArray[np.uint8], record: PictureRecord) -> bytes:
    """uint8 [H, W, 3] as a PNG that holds its record."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt(CHUNK, record.model_dump_json())
    text.add_itxt("Description", record.prompt)
    text.add_itxt("Software", "harmon generate")
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", pnginfo=text)
    return out.getvalue()


def save_picture(pixels: NDArray[np.uint8], record: PictureRecord, folder: Path) -> Path:
    """Write uint8 [H, W, 3] with its record; the file appears whole."""
    final = folder / record.file_name
    part = final.with_name(f".{final.name}.{os.getpid()}.part")
    part.write_bytes(png_of(pixels, record))
    part.replace(final)
    return final


def read_record(file: Path) -> PictureRecord:
    """How the PNG `file` was drawn.

    Raises:
        ConfigurationError: it is no PNG that `harmon generate` wrote.
    """
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            assert isinstance(opened, PngImagePlugin.PngImageFile)
            opened.load()  # text may follow the pixels
            values = json.loads(opened.text[CHUNK])
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError, KeyError, ValueError) as error:
        why = "it has no such metadata" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(f"{file} is no picture that `harmon generate` wrote ({why}); name one.") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file}: its metadata holds no record; name a picture that `harmon generate` wrote.")
    return parse(PictureRecord, values, str(file))


def finished(record: PictureRecord, folder: Path, preview: bool) -> bool:
    """Whether the picture of `record`, and its animation if asked for, are there already."""
    file = folder / record.file_name
    if not file.is_file() or (preview and not (folder / record.animation_name).is_file()):
        return False
    return read_record(file) == record


def save_animation(frames: Sequence[NDArray[np.uint8]], file: Path) -> None:
    """Write uint8 [H, W, 3] frames as an animated WebP that rests on the last."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(part, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, quality=90)
    part.replace(file)
