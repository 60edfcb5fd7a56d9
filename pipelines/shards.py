"""Image shards: plain ustar files that any WebDataset reader opens, and an index for random access.

A sample is two adjacent members, `KEY.<extension>` and `KEY.json`. The index is little-endian u64: the offset
of each sample's first header, then the offset at which the archive's end marker begins.
"""

import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import numpy as np

from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError
from pipelines.storage import ByteView, Store, mapped

BLOCK = 512  # POSIX.1-1988 (ustar): headers and data are padded to blocks of 512 bytes
PIECE = 1 << 18  # bytes read at a time: small enough for a processor's cache, large enough to cost no calls
BATCH = 1 << 20  # bytes that wait to be written together: the kernel takes larger pieces more cheaply
IOV = 1000  # parts that wait at most; Linux takes 1024 a call
END = bytes(2 * BLOCK)  # two zero blocks end an archive
MAX_MEMBER = 8**11 - 1  # largest size that the 11 octal digits of a ustar header hold, in bytes

KEY = re.compile(r"[0-9a-f]{32}")
EXTENSION = re.compile(r"[a-z0-9]{1,8}")
HEADER = re.compile(rb"(?s)(?=([0-9a-f]{32})\.([a-z0-9]{1,8})\0).{124}([0-7]{11})\0.{121}ustar\0.{249}")
"""A member's header: key, extension and the octal size of its data, at their places in the 512 bytes."""


@dataclass(frozen=True)
class Image:
    """One sample of an image shard: encoded bytes as stored, and the JSON view beside them."""

    key: str
    extension: str
    data: bytes
    view: dict[str, object]


def index_path(tar: Path) -> Path:
    """Where the index of a shard lies: beside it, with `.idx` appended."""
    return tar.with_name(tar.name + ".idx")


def _template() -> bytes:
    """A ustar header without name, size and checksum: a regular file, mode 0644, owner 0, time 0."""
    return struct.pack(
        "100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x",
        b"",
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        b"",
        b"00000000000\0",
        b" " * 8,
        b"0",
        b"",
        b"ustar\0",
        b"00",
        b"",
        b"",
        b"0000000\0",
        b"0000000\0",
        b"",
    )


TEMPLATE = _template()
TEMPLATE_SUM = sum(TEMPLATE)
MODE, TIME, LINK = TEMPLATE[100:124], TEMPLATE[136:148], TEMPLATE[156:]


def member_header(name: str, size: int) -> bytes:
    """The header of a member; equal samples give equal bytes. Its checksum is the sum of all its bytes."""
    text, digits = name.encode(), b"%011o" % size
    checksum = b"%06o\0 " % (TEMPLATE_SUM + sum(text) + sum(digits))
    return b"".join((text.ljust(100, b"\0"), MODE, digits, b"\0", TIME, checksum, LINK))


def _padding(size: int) -> int:
    return -size % BLOCK


class ShardWriter:
    """Writes a new shard at `path` and its index beside it, hashing both as they are written.

    `tar_sha256` and `idx_sha256` are set by `close`. Files of those names must not exist yet.
    """

    tar_sha256: str
    idx_sha256: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self._known: set[str] = set()
        self._offsets: list[int] = []
        self._end = 0
        self._waiting: list[bytes] = []
        self._held = 0
        self._digest = hashlib.sha256()
        try:
            self._stream = path.open("xb", buffering=0)
        except OSError as problem:
            raise HarmonError(f"the shard {path} cannot be started: {problem.strerror}") from problem

    def add(self, key: str, image: bytes, extension: str, view: Mapping[str, object]) -> None:
        """Append one sample; `extension` is the sniffed type without a dot, lower case ("jpg", "png")."""
        if not KEY.fullmatch(key):
            raise HarmonError(f"{key!r} is no sample key for {self.path}: 32 lower-case hex digits are needed")
        if not EXTENSION.fullmatch(extension) or extension == "json":
            raise HarmonError(f"{extension!r} cannot be the image extension of {key} in {self.path}")
        if key in self._known:
            raise HarmonError(f"the key {key} comes twice in {self.path}; keys are unique within a dataset")
        told = canonical_json(view)
        if max(len(image), len(told)) > MAX_MEMBER:
            raise HarmonError(f"{key} is larger than a ustar member of {self.path} may be ({MAX_MEMBER} bytes)")
        self._known.add(key)
        self.keys.append(key)
        self._offsets.append(self._end)
        beside = (
            bytes(_padding(len(image))),
            member_header(f"{key}.json", len(told)),
            told,
            bytes(_padding(len(told))),
        )
        self._write(member_header(f"{key}.{extension}", len(image)), image, b"".join(beside))

    def _write(self, *parts: bytes) -> None:
        self._waiting += parts
        for part in parts:
            self._digest.update(part)
            self._end += len(part)
            self._held += len(part)
        if self._held >= BATCH or len(self._waiting) >= IOV:
            self._flush()

    def _flush(self) -> None:
        """Hand over what waits with one system call, which may fall short of it: then the rest follows."""
        parts, length = self._waiting, self._held
        self._waiting, self._held = [], 0
        written = os.writev(self._stream.fileno(), parts) if parts else 0
        if written < length:
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[self._stream.write(rest) :]

    def close(self) -> int:
        """Write the end marker and the index; returns the number of samples. Closing twice is fine."""
        if not self._stream.closed:
            index = np.array([*self._offsets, self._end], dtype="<u8").tobytes()
            self._write(END)
            self._flush()
            self._stream.close()
            with index_path(self.path).open("xb") as stream:
                stream.write(index)
            self.tar_sha256 = self._digest.hexdigest()
            self.idx_sha256 = hashlib.sha256(index).hexdigest()
        return len(self.keys)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()


class RawSample(NamedTuple):
    """One sample as it stands in the archive: the image's bytes, and those of its JSON view."""

    key: str
    extension: str
    data: bytes
    view: bytes


class ImageShard:
    """Random access to a shard by position among its members: a memory map, or one ranged read a sample.

    Rows without an image have no member; `find` takes a key and answers None for those.
    """

    def __init__(self, tar_path: Path, idx_path: Path) -> None:
        try:
            index = idx_path.read_bytes()
        except OSError as problem:
            raise HarmonError(
                f"the index {idx_path} cannot be read: {problem.strerror}; run `harmon audit`"
            ) from problem
        self._begin(mapped(tar_path), index, str(tar_path))

    @classmethod
    def stored(
        cls, store: Store, tar: str, index: str, likely_keys: Callable[[], Sequence[str]] | None = None
    ) -> "ImageShard":
        """A shard in a store, local or not.

        `likely_keys` tells where the members probably are (the keys of source that should have an image), so that
        `find` need not fetch every header; what is read is compared with what was asked for.
        """
        shard = cls.__new__(cls)
        shard._begin(store.view(tar), store.read(index), store.where(tar))
        shard._likely_keys = likely_keys
        return shard

    def _begin(self, data: ByteView, index: bytes, where: str) -> None:
        self.where = where
        self._data = data
        self._mapped = isinstance(data, mmap.mmap)
        self._likely_keys: Callable[[], Sequence[str]] | None = None
        self._rows: dict[str, int] | None = None
        offsets = np.frombuffer(index, "<u8", len(index) // 8).astype(np.int64)
        fits = len(offsets) > 0 and len(index) % 8 == 0 and int(offsets[-1]) + len(END) <= len(data)
        if not fits or (np.diff(offsets) < 2 * BLOCK).any() or int(offsets[0]) < 0:
            raise HarmonError(f"the index of {where} does not belong to it; run `harmon audit --deep`")
        self._offsets: list[int] = offsets.tolist()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, row: int) -> Image:
        """The sample at position `row` (0-based, among the members). Raises IndexError outside the shard."""
        key, extension, data, view = self.raw(row)
        try:
            return Image(key, extension, data, dict(json.loads(view)))
        except (ValueError, TypeError) as problem:
            raise HarmonError(f"{self.where}: {key}.json is no JSON object; run `harmon audit --deep`") from problem

    def raw(self, row: int) -> RawSample:
        """Like `read`, with the view's bytes as they stand."""
        if not 0 <= row < len(self._offsets) - 1:
            raise IndexError(f"{self.where} has {len(self)} images; there is no position {row}")
        start, end = self._offsets[row], self._offsets[row + 1]
        # a map is matched and sliced in place; from afar comes the whole sample, once
        block, at = (self._data, start) if self._mapped else (self._data[start:end], 0)
        limit = at + end - start
        image = HEADER.match(block, at)  # type: ignore[arg-type]  # a map, or bytes
        if image is not None:
            data_at = at + BLOCK
            data_end = data_at + int(image[3], 8)
            view_at = data_end + -data_end % BLOCK
            view = HEADER.match(block, view_at) if view_at < limit else None  # type: ignore[arg-type]
            if view is not None and view[1] == image[1] and view[2] == b"json":
                view_end = view_at + BLOCK + int(view[3], 8)
                if view_end <= limit:
                    told = block[view_at + BLOCK : view_end]
                    return RawSample(image[1].decode(), image[2].decode(), block[data_at:data_end], told)
        raise HarmonError(f"{self.where} has no image with its view at offset {start}; run `harmon audit --deep`")

    def keys(self) -> list[str]:
        """Keys of the members in order (reads their headers only)."""
        headers = (self._data[offset : offset + BLOCK] for offset in self._offsets[:-1])
        return [name.key for header in headers if (name := parse_header(header)) is not None]

    def find(self, key: str) -> Image | None:
        """The sample with this key, or None where the shard has no image for it."""
        if self._rows is None:
            keys = self._likely_keys() if self._likely_keys else self.keys()
            if len(keys) != len(self):
                keys = self.keys()
            self._rows = {key: row for row, key in enumerate(keys)}
        row = self._rows.get(key)
        if row is None:
            return None
        image = self.read(row)
        if image.key != key:
            raise HarmonError(f"{self.where} has {image.key} where {key} should be; run `harmon audit --deep`")
        return image

    def close(self) -> None:
        """Let go of the map; reading afterwards fails."""
        self._data.close()


@dataclass(frozen=True)
class MemberName:
    """What a member's header says: key, extension, size of its data in bytes."""

    key: str
    extension: str
    size: int


def parse_header(header: bytes) -> MemberName | None:
    """The member that a ustar header describes, or None if it is not one that ShardWriter writes."""
    match = HEADER.fullmatch(header)
    return None if match is None else MemberName(match[1].decode(), match[2].decode(), int(match[3], 8))


@dataclass(frozen=True)
class Archive:
    """An archive read from end to end, without its index."""

    samples: tuple[tuple[int, str], ...]
    """Offset and key of each sample up to the first thing that is wrong."""
    sha256: str
    problem: str | None
    """The first place where it is not what ShardWriter writes: a damaged header, members out of pairs, no end."""


def read_archive(stream: BinaryIO, where: str) -> Archive:
    """Read every byte once, in bounded memory: its checksum, and its members by their headers."""
    digest = hashlib.sha256()
    window, start = b"", 0  # the archive's bytes [start, start + len(window))

    def block(offset: int) -> bytes:
        """The 512 bytes at `offset`, which only grows; fewer at the end of the file."""
        nonlocal window, start
        while offset + BLOCK > start + len(window) and (chunk := stream.read(PIECE)):
            digest.update(chunk)
            kept = window[offset - start :] if offset < start + len(window) else b""
            window, start = kept + chunk, start + len(window) - len(kept)
        return window[offset - start : offset - start + BLOCK]

    samples: list[tuple[int, str]] = []
    problem, offset = None, 0
    try:
        while (header := block(offset)) != END[:BLOCK]:
            image = _checked(header, where, offset)
            view_at = offset + BLOCK + image.size + _padding(image.size)
            view = _checked(block(view_at), where, view_at)
            if view.key != image.key or view.extension != "json" or image.extension == "json":
                raise HarmonError(f"{where}: the members at {offset} and {view_at} are no image with its view")
            samples.append((offset, image.key))
            offset = view_at + BLOCK + view.size + _padding(view.size)
    except HarmonError as wrong:
        problem = str(wrong)
    tail = block(offset + BLOCK) if problem is None else b""
    length = start + len(window)
    while chunk := stream.read(PIECE):
        digest.update(chunk)
        length += len(chunk)
    if problem is None and (length != offset + len(END) or tail != END[BLOCK:]):
        problem = f"{where}: the archive ends at {offset + len(END)} but the file at {length} bytes"
    return Archive(tuple(samples), digest.hexdigest(), problem)


def scan(tar_path: Path) -> Iterator[tuple[int, str]]:
    """Offset and key of each sample, read from the archive alone (not its index).

    Raises HarmonError at the first place where the archive is not what ShardWriter writes.
    """
    with tar_path.open("rb", buffering=0) as stream:
        archive = read_archive(stream, str(tar_path))
    yield from archive.samples
    if archive.problem:
        raise HarmonError(archive.problem)


def _checked(header: bytes, where: str, offset: int) -> MemberName:
    name = parse_header(header)
    if name is None or member_header(f"{name.key}.{name.extension}", name.size) != header:
        raise HarmonError(f"{where}: the bytes at {offset} are no member header")
    return name


def index_of(samples: Sequence[tuple[int, str]], size: int) -> bytes:
    """The index of an archive of `size` bytes whose samples begin at these offsets."""
    return np.array([*(offset for offset, _ in samples), size - len(END)], dtype="<u8").tobytes()
