"""Preprocessing is open_clip's own to the last bit, or, where it is asked to be faster, within one level of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from filtering.feed import batches
from filtering.preprocess import normalised, pixels
from tests.filtering.planted import encoded, photographs


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    sizes = [(816, 612), (301, 517), (100, 90), (224, 224), (1600, 300), (225, 224)]
    return [photo.resize(size) for photo, size in zip(photographs(), sizes)]


def open_clips(data: bytes) -> torch.Tensor:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(size=(224, 224), mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    with Image.open(io.BytesIO(data)) as image:
        return image_transform_v2(config, is_train=False)(image.convert("RGB"))  # as datasets hold pictures


def saved(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_agrees_with_open_clip_to_a_millionth(pictures: list[Image.Image], kind: str, mode: str) -> None:
    if (kind, mode) in {("JPEG", "RGBA"), ("PNG", "CMYK"), ("WEBP", "CMYK")}:
        pytest.skip(f"{kind} has no {mode}")
    for picture in pictures:
        data = saved(picture.convert(mode), kind)
        found = normalised(torch.tensor(pixels(data, 224))[None])[0]
        np.testing.assert_allclose(found.numpy(), open_clips(data).numpy(), atol=1e-6)


def test_the_faster_resizer_is_within_one_level_in_a_few_thousandths(pictures: list[Image.Image]) -> None:
    for picture in pictures:
        exact, fast = (pixels(encoded(picture), 224, resizer).astype(int) for resizer in ("pillow", "torch"))  # type: ignore[arg-type]
        # bicubic overshoots are clipped after each pass in both; two passes may add up to two levels
        assert np.abs(exact - fast).max() <= 2
        assert (exact != fast).mean() < 0.01


def test_batches_keep_the_order_and_name_what_cannot_be_decoded(pictures: list[Image.Image]) -> None:
    images = [(str(n), encoded(pictures[n % 6])) for n in range(20)]
    images[7] = ("7", b"<html>")
    images[8] = ("8", images[8][1][:300])
    found = list(batches(iter(images), lambda data: pixels(data, 32), 6, threads=2))
    assert [key for batch in found for key in batch.keys] == [str(n) for n in range(20) if n not in (7, 8)]
    assert [key for batch in found for key in batch.undecodable] == ["7", "8"]
    whole = np.concatenate([batch.pixels for batch in found])
    assert (whole[9] == pixels(images[11][1], 32)).all()


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    out = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(out, "PNG")
    with pytest.raises((ValueError, Image.DecompressionBombError)):
        pixels(out.getvalue(), 224)
