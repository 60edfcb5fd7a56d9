"""What benchmarks ask: questions about pictures, and prompts to draw.

A question holds its texts and where its pictures lie; their bytes are read when they are wanted and kept by nobody, so
a list of all questions of a benchmark is a few megabytes. Both can be pickled and answered in another process.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from pipelines.errors import HarmonError
from pipelines.normalise import BROKEN, FORMATS, Limits

MOST_PIXELS = Limits().max_pixels  # of one picture, judged from its header
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MARK = re.compile(r"<image (\d+)>")


class Picture(Protocol):
    """An encoded picture of a benchmark."""

    @property
    def where(self) -> str:
        """File and row that name it, as errors tell them."""
        ...

    def read(self) -> bytes:
        """Its bytes as published. Raises HarmonError where they are missing or damaged."""
        ...


@dataclass(frozen=True)
class Question:
    """One question that a model answers in words."""

    benchmark: str
    id: str
    """Unique within the benchmark, and the same in every reading of its files."""
    text: str
    """The question as published, without options and without what a prompt adds."""
    prompt: str
    """What the model is asked, in the variant chosen. Pictures stand before it, or where it says `<image 1>`."""
    pictures: tuple[Picture, ...]
    answer: str | tuple[str, ...]
    """The right answer: a letter where there are options; several where any of them counts."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Letter to text; empty for an open question."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What scores are grouped by: category, split, subject and so on."""
    group: str = ""
    """Questions of one group count only together (two of MME's about a picture, the rotations of MMBench); they stand
    beside each other. Empty: the question stands alone."""
    numbers: tuple[int, ...] = ()
    """The i of `<image i>` of each picture; empty: 1, 2 and so on."""

    @property
    def parts(self) -> tuple["str | Picture", ...]:
        """The prompt as a sequence of texts and pictures: pictures without a mark come first."""
        marked = dict(zip(self.numbers or range(1, len(self.pictures) + 1), self.pictures, strict=True))
        pieces = MARK.split(self.prompt)
        found = {int(number) for number in pieces[1::2]}
        parts: list[str | Picture] = [picture for number, picture in marked.items() if number not in found]
        for place, piece in enumerate(pieces):
            if place % 2 and int(piece) in marked:
                parts.append(marked[int(piece)])
            elif place % 2 or piece:
                parts.append(f"<image {piece}>" if place % 2 else piece)
        return tuple(parts)


@dataclass(frozen=True)
class Prompt:
    """One prompt that a model draws."""

    benchmark: str
    id: str
    """Unique within the benchmark; the official evaluation names files by it."""
    text: str
    """The prompt as published: what is put before it ("Generate an image: ") is the model's affair."""
    images: int
    """Pictures to draw of it."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What scores are grouped by."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """The rest of what was published, as the judge of this benchmark wants it."""
    pictures: tuple[Picture, ...] = ()
    """The real picture of this caption, where the benchmark has one and it was asked for."""


def decoded(picture: Picture) -> Image.Image:
    """A picture in RGB, as the official evaluations open it: neither turned upright nor managed for colour.

    Raises HarmonError where the bytes are no picture, or one of more than MOST_PIXELS: nothing is decoded then.
    """
    return opened(picture.read(), picture.where)


def opened(data: bytes, where: str) -> Image.Image:
    """`decoded`, of bytes at hand."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise HarmonError(
                    f"{where}: a picture of {image.width} x {image.height} pixels, more than {MOST_PIXELS:,} "
                    "are not decoded; fetch that file anew."
                )
            return image.convert("RGB")
    except (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HarmonError(
            f"{where}: its picture cannot be decoded ({type(error).__name__} {error}); fetch that file anew."
        ) from None
