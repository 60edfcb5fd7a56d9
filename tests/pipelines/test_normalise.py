"""A picture is stored as it came where it is plain RGB, converted by a stated rule, or refused."""

import io
import struct

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.normalise import BadPicture, Limits, Picture, decoded, normalise, reduced, reduced_size

GRADIENT = np.stack(np.meshgrid(np.arange(0, 240, 5), np.arange(0, 160, 5)) * 2, axis=-1)[..., :3].astype(np.uint8)
RGB = Image.fromarray(GRADIENT)  # 48 x 32


LIMITS = Limits()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(picture: Picture) -> np.ndarray:
    image = Image.open(io.BytesIO(picture.data))
    assert image.mode == "RGB" and image.size == (picture.width, picture.height)
    assert image.getexif().get(0x0112, 1) == 1
    return np.asarray(image).astype(int)


def reason(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(BadPicture) as caught:
        normalise(data, limits)
    return caught.value.reason


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_plain_pictures_keep_their_bytes(kind: str, extension: str) -> None:
    data = encoded(RGB, kind)
    assert normalise(data, LIMITS) == Picture(data, extension, 48, 32)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_is_applied_to_the_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, "PNG", exif=exif)
    turned = {
        2: GRADIENT[:, ::-1],
        3: GRADIENT[::-1, ::-1],
        4: GRADIENT[::-1],
        5: GRADIENT.transpose(1, 0, 2),
        6: GRADIENT[::-1].transpose(1, 0, 2),
        7: GRADIENT[::-1, ::-1].transpose(1, 0, 2),
        8: GRADIENT[:, ::-1].transpose(1, 0, 2),
    }
    assert (pixels(normalise(data, LIMITS)) == turned[orientation]).all()
    jpeg = normalise(encoded(RGB, "JPEG", exif=exif, quality=95), LIMITS)
    assert jpeg.extension == "jpg" and np.abs(pixels(jpeg) - turned[orientation]).mean() < 4


def test_grey_and_palette_and_bilevel_become_rgb() -> None:
    grey = RGB.convert("L")
    for image in (grey, grey.convert("P"), grey.convert("1")):
        stored = normalise(encoded(image, "PNG"), LIMITS)
        assert (pixels(stored) == np.asarray(image.convert("RGB"))).all() and stored.extension == "png"


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A small ICC profile (ICC.1:2001-04): header, table of tags, tags; the white point is D50."""
    d50 = struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + d50, b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x" + bytes(79)} | tags
    at, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = bytes(4) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head = head + d50 + bytes(128 - 4 - len(head) - len(d50))
    return struct.pack(">I", at + len(data)) + head + struct.pack(">I", len(tags)) + table + data


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def colorant(*xyz: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * 65536) for value in xyz))


ADOBE = icc(
    b"RGB ",
    {
        b"rXYZ": colorant(0.60974, 0.31111, 0.01947),
        b"gXYZ": colorant(0.20528, 0.62567, 0.06087),
        b"bXYZ": colorant(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(563 / 256)),
    },
)  # Adobe RGB (1998), section 4.3: colorants adapted to D50, gamma 563/256
LINEAR_GREY = icc(b"GRAY", {b"kTRC": curve(1.0)})


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "jpg")])
def test_colours_under_a_profile_become_srgb_where_a_picture_is_encoded_again(kind: str, extension: str) -> None:
    """An untouched picture takes its profile along; one that is reduced has none, and its numbers are sRGB's."""
    patch = Image.new("RGB", (64, 64), (104, 128, 104))
    data = encoded(patch, kind, quality=100, icc_profile=ADOBE)
    assert normalise(data, LIMITS).data == data  # untouched, and its profile with it
    small = normalise(data, Limits(short_side=16))
    assert small.extension == extension and "icc_profile" not in Image.open(io.BytesIO(small.data)).info
    assert np.abs(pixels(small) - srgb_of_adobe(104, 128, 104)).max() <= 3  # of 12 at stake
    assert np.abs(srgb_of_adobe(104, 128, 104) - [104, 128, 104]).max() > 10
    plain = normalise(encoded(patch, kind, quality=100), Limits(short_side=16))
    assert np.abs(pixels(plain) - [104, 128, 104]).max() <= 2


def srgb_of_adobe(*rgb: int) -> np.ndarray:
    """Both have the white point D65, so their matrices to XYZ (Adobe RGB (1998) 4.3.5; IEC 61966-2-1) are enough."""
    to_xyz = [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
    from_xyz = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.array(from_xyz) @ np.array(to_xyz) @ (np.array(rgb) / 255) ** (563 / 256)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_a_grey_profile_is_applied_and_not_copied_into_rgb() -> None:
    for mode, options in (("L", {}), ("LA", {}), ("L", {"transparency": 3})):
        stored = normalise(encoded(Image.new(mode, (8, 8), (55, 255)[: len(mode)] if mode == "LA" else 55), "PNG",
                                   icc_profile=LINEAR_GREY, **options), LIMITS)  # fmt: skip
        assert "icc_profile" not in Image.open(io.BytesIO(stored.data)).info
        assert np.abs(pixels(stored) - 128).max() <= 1  # 55/255 of the light is 128 in sRGB


def test_a_profile_that_is_damaged_or_for_other_colours_is_left_out() -> None:
    for profile in (b"no profile", ADOBE[:150], LINEAR_GREY):
        stored = normalise(encoded(RGB.convert("P"), "PNG", icc_profile=profile), LIMITS)
        assert (pixels(stored) == np.asarray(RGB.convert("P").convert("RGB"))).all()
        assert "icc_profile" not in Image.open(io.BytesIO(stored.data)).info


def test_sixteen_bits_keep_their_high_byte() -> None:
    deep = GRADIENT[..., 0].astype(np.uint16) * 257
    stored = pixels(normalise(encoded(Image.fromarray(deep), "PNG"), LIMITS))
    assert (stored == GRADIENT[..., :1]).all()


def test_alpha_is_laid_on_white() -> None:
    layer = RGB.convert("RGBA")
    layer.putalpha(Image.new("L", RGB.size, 0))
    assert (pixels(normalise(encoded(layer, "PNG"), LIMITS)) == 255).all()
    marked = encoded(RGB, "PNG", transparency=(0, 0, 0))
    expected = np.where((GRADIENT == 0).all(axis=-1, keepdims=True), 255, GRADIENT)
    assert (pixels(normalise(marked, LIMITS)) == expected).all()


def test_cmyk_becomes_rgb() -> None:
    stored = normalise(encoded(RGB.convert("CMYK"), "JPEG", quality=95), LIMITS)
    assert stored.extension == "jpg" and np.abs(pixels(stored) - GRADIENT).mean() < 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_stays(kind: str) -> None:
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("black", "white")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    stored = normalise(data, LIMITS)
    assert stored.extension == "png" and (pixels(stored) == 0).all()


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_other_formats_become_png(kind: str) -> None:
    stored = normalise(encoded(RGB, kind), LIMITS)
    assert stored.extension == "png" and (pixels(stored) == GRADIENT).all()


def test_pages_and_nothing_and_unknown_formats_are_no_pictures() -> None:
    assert reason(b"<!DOCTYPE html><html></html>") == reason(b"") == reason(b"GIF89a") == "not_an_image"
    assert reason(encoded(RGB, "PDF")) == "not_an_image"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    assert reason(encoded(RGB, "PNG"), Limits(max_pixels=48 * 32 - 1)) == "too_large"
    assert reason(encoded(Image.new("1", (15_000, 15_000)), "PNG")) == "too_large"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_cut_in_its_middle_is_truncated(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert reason(data[: len(data) // 2]) == "truncated"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "turned JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]), st.data())
def test_damaged_pictures_end_as_a_picture_or_a_reason(kind: str, draw: st.DataObject) -> None:
    data = bytearray(turned_jpeg() if kind == "turned JPEG" else encoded(RGB, kind))
    for _ in range(draw.draw(st.integers(0, 6))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = data[: draw.draw(st.integers(0, len(data)))]
    try:
        pixels(normalise(bytes(data), Limits(max_pixels=1_000_000)))
    except BadPicture as error:
        assert error.reason in {"not_an_image", "truncated", "too_large"}


def turned_jpeg() -> bytes:
    """A JPEG to be turned upright, with EXIF of every kind: text, numbers, fractions, a folder inside."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x011A: 72.0, 0x0102: (8, 8, 8)})
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9000: b"0232", 0x9286: b"a comment"})
    return encoded(RGB, "JPEG", exif=exif)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_exif_of_a_turned_picture_ends_as_a_picture_or_a_reason(draw: st.DataObject) -> None:
    """Only the EXIF block is damaged: the orientation often stays, and all tags are written again."""
    data = bytearray(turned_jpeg())
    start = data.index(b"Exif\0\0") + 6
    end = start + int.from_bytes(data[start - 8 : start - 6], "big") - 8
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(start, end - 1))] = draw.draw(st.integers(0, 255))
    try:
        pixels(normalise(bytes(data), LIMITS))
    except BadPicture as error:
        assert error.reason in {"not_an_image", "truncated"}


@pytest.mark.parametrize("error", [AttributeError, TypeError, OverflowError, ZeroDivisionError, ValueError])
def test_a_failure_to_turn_a_picture_is_a_reason(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise error("a tag that cannot be written")

    data = turned_jpeg()
    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    assert reason(data) == "not_an_image"


@given(st.binary(max_size=300))
def test_random_bytes_are_no_picture(data: bytes) -> None:
    assert reason(data) in {"not_an_image", "truncated", "too_large"}


# Reduced to a short side


def noise(width: int, height: int) -> Image.Image:
    """A picture with detail at every scale, as photographs have."""
    rng = np.random.default_rng(5)
    layers = [rng.normal(128, 60, (-(-height // step), -(-width // step), 3)) for step in (1, 4, 16, 64)]
    grown = [np.kron(one, np.ones((step, step, 1)))[:height, :width] for step, one in zip((1, 4, 16, 64), layers)]
    return Image.fromarray(np.clip(np.mean(grown, axis=0), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "small"),
    [((640, 400), (205, 128)), ((400, 640), (128, 205)), ((129, 129), (128, 128)), ((5000, 200), (3200, 128))],
)
def test_the_shorter_side_becomes_the_one_asked_for(size: tuple[int, int], small: tuple[int, int]) -> None:
    for kind, extension in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "jpg")):
        stored = normalise(encoded(Image.new("RGB", size), kind), Limits(short_side=128))
        assert (stored.width, stored.height, stored.extension) == (*small, extension)
        assert pixels(stored).shape == (small[1], small[0], 3)


@pytest.mark.parametrize("size", [(128, 128), (127, 900)])
def test_a_picture_that_is_small_enough_keeps_its_bytes(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size), "JPEG")
    assert normalise(data, Limits(short_side=128)).data == data


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = RGB.resize((480, 320), Image.Resampling.NEAREST)
    upright = normalise(encoded(large, "PNG", exif=exif), LIMITS)
    stored = normalise(encoded(large, "PNG", exif=exif), Limits(short_side=160))
    wanted = Image.open(io.BytesIO(upright.data)).resize((stored.width, stored.height), Image.Resampling.LANCZOS)
    assert np.abs(pixels(stored) - np.asarray(wanted).astype(int)).max() <= 1


@pytest.mark.parametrize("short_side", [64, 100, 160, 256])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
def test_decoding_a_jpeg_smaller_changes_next_to_nothing(name: str, short_side: int) -> None:
    """Photographs with all their detail, against the same filter over all pixels: above 45 dB, which no eye sees."""
    one = getattr(skimage.data, name)()
    row = np.concatenate([one, one[:, ::-1]] * 2, axis=1)
    data = encoded(Image.fromarray(np.concatenate([row, row[::-1]] * 2)), "JPEG", quality=92)
    image = Image.open(io.BytesIO(data))
    target = reduced_size(image.size, Limits(short_side=short_side))
    assert target is not None
    whole = np.asarray(image.resize(target, Image.Resampling.LANCZOS)).astype(int)
    small = np.asarray(reduced(decoded(Image.open(io.BytesIO(data)), target), target)).astype(int)
    assert small.shape == (target[1], target[0], 3)
    assert 10 * np.log10(255**2 / np.mean((small - whole) ** 2)) > 45


def test_alpha_and_depth_are_settled_before_a_picture_is_reduced() -> None:
    layer = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    assert (pixels(normalise(encoded(layer, "PNG"), Limits(short_side=50))) == 255).all()
    deep = Image.fromarray(np.full((300, 400), 0x80FF, np.uint16))
    assert (pixels(normalise(encoded(deep, "PNG"), Limits(short_side=50))) == 0x80).all()
    cmyk = noise(400, 300).convert("CMYK")
    assert normalise(encoded(cmyk, "JPEG"), Limits(short_side=50)).extension == "jpg"


def test_limits_without_a_short_side_are_described_as_before_there_was_one() -> None:
    assert Limits().model_dump(mode="json") == {"max_pixels": 64_000_000}
    assert Limits(short_side=512).model_dump(mode="json") == {"max_pixels": 64_000_000, "short_side": 512}
