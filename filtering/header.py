"""Format, width and height from the first bytes of a picture: no pixel is decoded, no library is called.

The column group `header` holds what the bytes say, where `source` holds what the download said of them.
"""

import struct
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.groups import check_free
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import IMAGES, INDEX, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.ustar import BLOCK, member, members

GROUP = "header"
STEP_VERSION = 1
START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})  # T.81, B.1
BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length: TEM and restarts
FIRST = 1536  # bytes of a picture that are read at first: nearly every size stands in them
AT_ONCE = 4096  # pictures whose first bytes are held together: 8 MiB
MOST_MARKERS = 4096  # a JPEG with more segments before its frame is no photograph
SEGMENTS = 16  # of so many the first bytes of all are walked together; of more one by one
_IS_FRAME = np.isin(np.arange(256), list(START_OF_FRAME))
_HAS_LENGTH = ~_IS_FRAME & ~np.isin(np.arange(256), [*BARE, 0xD9, 0xDA, 0xFF])

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


class Found(NamedTuple):
    """The headers of a shard's images, in the order of its archive."""

    keys: list[str]
    formats: list[str | None]
    sizes: NDArray[np.int64]
    """[images, 2], width and height; 0 where the bytes tell none."""


NONE = np.zeros((0, 2), np.int64)


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
        found = _found(dataset, shard) if dataset.entry(IMAGES, shard) is not None else Found([], [], NONE)
        output.columns(GROUP, _table(keys, found))
        output.finish(len(keys))
    return run.commit()


def _found(dataset: Dataset, shard: int) -> Found:
    """What each image's first bytes say; the rest of it is read only where those do not tell."""
    tar, index = dataset.entry(IMAGES, shard), dataset.entry(INDEX, shard)
    if tar is None or index is None:
        raise HarmonError(f"the images of shard {shard} in {dataset.root} have no index; run `harmon audit`")
    view, offsets = dataset.store.view(tar.path), np.frombuffer(dataset.store.read(index.path), "<u8").tolist()
    keys: list[str] = []
    formats: list[str | None] = []
    sizes = [NONE]
    for first in range(0, len(offsets) - 1, AT_ONCE):
        places = offsets[first : min(first + AT_ONCE, len(offsets) - 1)]
        starts = [view[place : place + BLOCK + FIRST].ljust(BLOCK + FIRST, b"\0") for place in places]
        data = np.frombuffer(b"".join(starts), np.uint8).reshape(-1, BLOCK + FIRST)
        said = members(data[:, :BLOCK])
        if said is None:
            bad = next(place for place, start in zip(places, starts, strict=True) if member(start[:BLOCK]) is None)
            raise HarmonError(f"{dataset.store.where(tar.path)} has no image at {bad}; run `harmon audit --deep`")
        names, lengths = said
        size = jpeg_sizes(data[:, BLOCK:], lengths)
        kinds: list[str | None] = ["jpg"] * len(places)
        for row in np.flatnonzero(size[:, 0] == 0).tolist():
            length, begin = int(lengths[row]), places[row] + BLOCK
            header = read_header(starts[row][BLOCK : BLOCK + length])
            if header is None and length > FIRST:
                header = read_header(view[begin : begin + length])
            kinds[row], *size[row] = header or (None, 0, 0)
        keys += names
        formats += kinds
        sizes.append(size)
    view.close()
    return Found(keys, formats, np.concatenate(sizes))


def jpeg_sizes(data: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Width and height [N, 2] of JPEGs, of whose bytes [N, M] are there; 0 where they do not tell, or begin no JPEG.

    `read_header` for all of them at once, as far as photographs go; `lengths`: of the files, which may be shorter.
    """
    found, lengths = np.zeros((len(data), 2), np.int64), np.minimum(lengths, data.shape[1])
    rows = np.flatnonzero((data[:, 0] == 0xFF) & (data[:, 1] == 0xD8))
    at = np.full(len(rows), 2)
    for _ in range(SEGMENTS):
        there = at + 9 <= lengths[rows]
        rows, at = rows[there], at[there]
        if not len(rows):
            break
        marker, begun = data[rows, at + 1], data[rows, at] == 0xFF
        frame = begun & _IS_FRAME[marker]
        told = data[rows[frame, None], at[frame, None] + np.array([7, 8, 5, 6])].astype(np.int64)
        found[rows[frame]] = told[:, ::2] << 8 | told[:, 1::2]
        more = begun & _HAS_LENGTH[marker]
        rows, at = rows[more], at[more]
        at = at + 2 + (data[rows, at + 2].astype(np.int64) << 8 | data[rows, at + 3])
    return found


def _table(keys: pa.ChunkedArray, found: Found) -> pa.Table:
    names = keys.to_pylist()
    places = {key: row for row, key in enumerate(found.keys)}
    rows = np.array([places.get(key, -1) for key in names], np.int64)
    size = np.concatenate([found.sizes, np.zeros((1, 2), np.int64)])[rows]  # the last is of a row without an image
    formats = [*found.formats, None]
    known = np.asarray((size > 0).all(axis=1), bool)
    longer, shorter = size.max(axis=1, initial=0), size.min(axis=1, initial=1 << 40)
    reasons = np.where(rows < 0, "no_image", "no_header").astype(object)
    return pa.table(
        {
            "key": keys,
            "format": pa.array([formats[row] for row in rows.tolist()], pa.string(), mask=~known),
            "width": pa.array(size[:, 0], pa.int32(), mask=~known),
            "height": pa.array(size[:, 1], pa.int32(), mask=~known),
            "pixels": pa.array(size[:, 0] * size[:, 1], pa.int64(), mask=~known),
            "aspect": pa.array(longer / np.maximum(shorter, 1), pa.float32(), mask=~known),
            "status": pa.array(np.where(known, "ok", "failed").astype(object), pa.string()),
            "reason": pa.array(reasons, pa.string(), mask=known),
        }
    )
