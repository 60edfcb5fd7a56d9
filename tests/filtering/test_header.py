"""Headers tell what a decoder would, for every format and whatever stands before the size; damage is never a size."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filtering.header import FIRST, GROUP, Header, jpeg_sizes, read_header, write_headers
from pipelines.audit import audit
from pipelines.errors import HarmonError
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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(range(7)), st.integers(0, 700)), min_size=1, max_size=8))
def test_jpegs_looked_at_together_have_the_size_that_each_has_or_none(chosen: list[tuple[int, int]]) -> None:
    """Whole, cut anywhere, with what others wrote behind their end, with more before the frame than is looked at."""
    jpegs = [saved((300, 20), "JPEG"), saved((17, 400), "JPEG", progressive=True)]
    jpegs.append(saved((60, 50), "JPEG", exif=b"Exif\0\0" + bytes(3000)))
    jpegs.append(b"\xff\xd8" + b"\xff\xfe\0\4ab" * 30 + jpegs[0][2:])
    jpegs.append(b"\xff\xd8\xff\xff\xff\x01" + jpegs[0][2:])
    jpegs += [saved((30, 30), "PNG"), b"\xff\xd8" + bytes(40)]
    files = [jpegs[which][: length or None] for which, length in chosen]
    data = np.frombuffer(b"".join((file + jpegs[0])[:FIRST].ljust(FIRST, b"\0") for file in files), np.uint8)
    found = jpeg_sizes(data.reshape(-1, FIRST), np.array([len(file) for file in files])).tolist()
    for (which, length), file, size in zip(chosen, files, found, strict=True):
        header = read_header(file)
        told = [header.width, header.height] if header and header.format == "jpg" else [0, 0]
        assert size in (told, [0, 0])
        if which < 2 and not length:
            assert size == told


def test_a_shard_whose_archive_has_another_header_is_refused(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row(f"r{n}", n) for n in range(3)], 3)
    tar = next(iter((tmp_path / "toys/images").rglob("*.tar")))
    data = bytearray(tar.read_bytes())
    data[0] ^= 1
    tar.write_bytes(data)
    with pytest.raises(HarmonError, match="has no image at 0; run `harmon audit --deep`"):
        write_headers(dataset)


def test_the_group_says_what_the_bytes_say(tmp_path: Path) -> None:
    rows = [Row("a", size=(160, 90)), Row("text", text=True), Row("b", data=b"<html>"), Row("c", 3, (100, 200))]
    dataset = write_rows(tmp_path / "toys", rows, 3)
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
