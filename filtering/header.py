"""Format, width and height from the first bytes of a picture: no pixel is decoded, no library is called.

The column group `header` holds what the bytes say, where `source` holds what the download said of them.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from filtering.groups import check_free
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import IMAGES, INDEX, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.ustar import BLOCK, member

GROUP = "header"
STEP_VERSION = 1
START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})  # T.81, B.1
BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM and restarts
FIRST = 1536  # bytes of a picture that are read at first: nearly every size stands in them
MOST_MARKERS = 4096  # a JPEG with more segments before its frame is no photograph

_BIG2 = struct.Struct(">HH").unpack_from
_BIG4 = struct.Struct(">II").unpack_from
_LENGTH = struct.Struct(">H").unpack_from


class Header(NamedTuple):
    """What a picture's first bytes say."""

    format: str
    """jpg, png, webp or gif."""
    width: int
    height: int
    """Pixels as stored, before any orientation in EXIF."""


def read_header(data: bytes) -> Header | None:
    """The header of an encoded picture, or None where the bytes begin like none of the four formats, or end before
    their size is told."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return Header("png", *_BIG4(data, 16))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return Header("gif", *struct.unpack_from("<HH", data, 6))
    except (struct.error, IndexError):
        return None
    return None


def _jpeg(data: bytes) -> Header | None:
    """Walk the segments to the frame's (ITU-T T.81, B.2.2): length, precision, height, width."""
    at = 2
    for _ in range(MOST_MARKERS):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker in START_OF_FRAME:
            height, width = _BIG2(data, at + 5)
            return Header("jpg", width, height)
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in BARE:
            at += 2
        elif marker in (0xD9, 0xDA):  # the end, or pixels, before any frame
            return None
        else:
            at += 2 + _LENGTH(data, at + 2)[0]
    return None


def _webp(data: bytes) -> Header | None:
    """The first chunk tells (RFC 9649): canvas of VP8X, or the frame of VP8 or VP8L."""
    kind = data[12:16]
    if kind == b"VP8X":
        sides = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        return Header("webp", *sides) if len(data) >= 30 else None
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF) if data[23:26] == b"\x9d\x01\x2a" else None
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None


def header_step(dataset: Dataset) -> Step:
    """The step that writes the column group `header` of `dataset`."""
    groups = (SOURCE, IMAGES) if dataset.entries(IMAGES) else (SOURCE,)
    return Step(GROUP, STEP_VERSION, {}, (Reads(dataset, groups),))


def write_headers(dataset: Dataset, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `header` (format, width, height, pixels, aspect) of every image and commit it.

    Rows without an image are failed with the reason `no_image`, those whose bytes tell no size with `no_header`.
    """
    run = StepRun(dataset, header_step(dataset), on_progress)
    if run.committed:
        return run.committed
    check_free(dataset, GROUP, run.step)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        keys = dataset.table(SOURCE, shard, ["key"]).column("key")
        found: dict[str, Header | None] = {}
        if dataset.entry(IMAGES, shard) is not None:
            found = dict(_headers(dataset, shard))
        output.columns(GROUP, _table(keys, found))
        output.finish(len(keys))
    return run.commit()


def _headers(dataset: Dataset, shard: int) -> Iterator[tuple[str, Header | None]]:
    """Key and header of each image, from its first bytes; the rest of it is read only where those do not tell."""
    tar, index = dataset.entry(IMAGES, shard), dataset.entry(INDEX, shard)
    if tar is None or index is None:
        raise HarmonError(f"the images of shard {shard} in {dataset.root} have no index; run `harmon audit`")
    view, offsets = dataset.store.view(tar.path), np.frombuffer(dataset.store.read(index.path), "<u8").tolist()
    for offset in offsets[:-1]:
        start = view[offset : offset + BLOCK + FIRST]
        name = member(start[:BLOCK])
        if name is None:
            raise HarmonError(f"{dataset.store.where(tar.path)} has no image at {offset}; run `harmon audit --deep`")
        header = read_header(start[BLOCK : BLOCK + name.size])
        if header is None and name.size > FIRST:
            header = read_header(view[offset + BLOCK : offset + BLOCK + name.size])
        yield name.key, header
    view.close()


def _table(keys: pa.ChunkedArray, found: dict[str, Header | None]) -> pa.Table:
    names = keys.to_pylist()
    headers = [found.get(key) for key in names]
    size = np.array([(one.width, one.height) if one else (0, 0) for one in headers], np.int64).reshape(-1, 2)
    known = np.asarray((size > 0).all(axis=1), bool)
    longer, shorter = size.max(axis=1, initial=0), size.min(axis=1, initial=1 << 40)
    reasons = [
        None if ok else "no_header" if key in found else "no_image"
        for key, ok in zip(names, known.tolist(), strict=True)
    ]
    return pa.table(
        {
            "key": keys,
            "format": pa.array([one.format if one else None for one in headers], pa.string(), mask=~known),
            "width": pa.array(size[:, 0], pa.int32(), mask=~known),
            "height": pa.array(size[:, 1], pa.int32(), mask=~known),
            "pixels": pa.array(size[:, 0] * size[:, 1], pa.int64(), mask=~known),
            "aspect": pa.array(longer / np.maximum(shorter, 1), pa.float32(), mask=~known),
            "status": pa.array(["failed" if reason else "ok" for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
