"""Headers tell what a decoder would, for every format and whatever stands before the size; damage is never a size."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filtering.header import GROUP, Header, read_header, write_headers
from pipelines.audit import audit
from tests.filtering.pictured import Row, jpeg, write_rows


def saved(size: tuple[int, int], kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(out, kind, **options)
    return out.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from(
        [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"exif": b"Exif\0\0" + bytes(5000), "comment": b"x" * 60000}),
            ("PNG", {}),
            ("GIF", {}),
            ("WEBP", {}),
            ("WEBP", {"lossless": True}),
            ("WEBP", {"exif": b"Exif\0\0MM\0*" + bytes(40)}),
        ]
    ),
)
def test_the_size_is_what_pillow_says(size: tuple[int, int], kind: tuple[str, dict[str, object]]) -> None:
    name, options = kind
    extension = {"JPEG": "jpg"}.get(name, name.lower())
    assert read_header(saved(size, name, **options)) == Header(extension, *size)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing(data: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n0000IHDR", b"RIFF0000WEBPVP8 ", b"RIFF0000WEBPVP8L", b"GIF89a"):
        read_header(start + data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_cut_file_has_the_right_size_or_none(kind: str) -> None:
    data = saved((123, 45), kind)
    for length in range(min(len(data), 700)):
        found = read_header(data[:length])
        assert found is None or (found.width, found.height) == (123, 45)


def test_the_group_says_what_the_bytes_say(tmp_path: object) -> None:
    rows = [Row("a", size=(160, 90)), Row("text", text=True), Row("b", data=b"<html>"), Row("c", 3, (100, 200))]
    dataset = write_rows(tmp_path / "toys", rows, 3)  # type: ignore[operator]
    commit = write_headers(dataset)
    found = dataset.whole_table(GROUP).to_pylist()
    assert [(row["width"], row["height"], row["reason"]) for row in found] == [
        (160, 90, None),
        (None, None, "no_image"),
        (None, None, "no_header"),
        (100, 200, None),
    ]
    assert found[0]["aspect"] == pytest.approx(16 / 9)
    assert found[0]["pixels"] == 160 * 90
    assert dict(commit.failed) == {"no_image": 1, "no_header": 1}
    assert audit(dataset).sound
    assert read_header(jpeg(0, (160, 90))) == Header("jpg", 160, 90)
