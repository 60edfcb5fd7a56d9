"""Images leave here upright, in RGB, at the size that Qwen2-VL's own processor would give them."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from recaption.pictures import fitting_size, picture
from recaption.prompt import Picture, load_prompt

SIZE = Picture(min_pixels=3136, max_pixels=401408)


def opened(data: bytes | None) -> Image.Image:
    assert data
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encoded(image: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)  # type: ignore[arg-type]
    return out.getvalue()


@given(st.integers(8, 4000), st.integers(8, 4000))
def test_the_size_is_that_of_the_models_own_processor(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    high, wide = smart_resize(height, width, 28, SIZE.min_pixels, SIZE.max_pixels)
    assert fitting_size(width, height, SIZE) == (wide, high)


@given(st.integers(28, 3000), st.integers(28, 3000))
def test_a_fitting_size_stays_as_it_is(width: int, height: int) -> None:
    once = fitting_size(width, height, SIZE)
    assert fitting_size(*once, SIZE) == once


def test_a_photograph_that_lies_on_its_side_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sent = opened(picture(encoded(Image.new("RGB", (280, 140), "red"), "JPEG", exif=exif), SIZE))
    assert sent.size == (140, 280)
    assert sent.format == "JPEG"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb_on_white(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    sent = opened(picture(encoded(Image.new(mode, (56, 56)), form), SIZE))
    assert (sent.mode, sent.size) == ("RGB", (56, 56))
    if mode in ("LA", "RGBA"):
        assert min(sent.getpixel((28, 28))) > 250  # wholly clear


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        encoded(Image.new("RGB", (280, 140)), "JPEG")[:200],
        encoded(Image.new("RGB", (2010, 10)), "PNG"),
        b"GIF89a" + bytes(20),
    ],
)
def test_what_cannot_be_shown_is_none(data: bytes) -> None:
    assert picture(data, SIZE) is None


def test_a_large_photograph_is_made_small_enough_for_its_prompt() -> None:
    size = load_prompt("caption-dense-v1").image
    assert size
    sent = opened(picture(encoded(Image.new("RGB", (4000, 3000), "teal"), "JPEG"), size))
    assert sent.width * sent.height <= size.max_pixels
    assert sent.width % 28 == sent.height % 28 == 0
    assert sent.width / sent.height == pytest.approx(4 / 3, rel=0.03)
