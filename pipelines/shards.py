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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError

BLOCK = 512  # POSIX.1-1988 (ustar): headers and data are padded to blocks of 512 bytes
END = bytes(2 * BLOCK)  # two zero blocks end an archive
MAX_MEMBER = 8**11 - 1  # largest size that the 11 octal digits of a ustar header hold, in bytes

KEY = re.compile(r"[0-9a-f]{32}")
EXTENSION = re.compile(r"[a-z0-9]{1,8}")
MEMBER = re.compile(rb"([0-9a-f]{32})\.([a-z0-9]{1,8})")


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


def _header(name: str, size: int) -> bytes:
    """A ustar header of a regular file: mode 0644, owner 0, time 0, so equal samples give equal bytes."""
    fields = struct.pack(
        "100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x",
        name.encode(),
        b"0000644\0",
        b"0000000\0",
        b"0000000\0",
        b"%011o\0" % size,
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
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


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
        self._digest = hashlib.sha256()
        try:
            self._stream: BinaryIO = path.open("xb", buffering=1 << 20)
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
        members = ((f"{key}.{extension}", image), (f"{key}.json", canonical_json(view)))
        if max(len(data) for _, data in members) > MAX_MEMBER:
            raise HarmonError(f"{key} is larger than a ustar member of {self.path} may be ({MAX_MEMBER} bytes)")
        self._known.add(key)
        self.keys.append(key)
        self._offsets.append(self._end)
        for name, data in members:
            self._write(_header(name, len(data)))
            self._write(data)
            self._write(bytes(_padding(len(data))))

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._end += len(data)

    def close(self) -> int:
        """Write the end marker and the index; returns the number of samples. Closing twice is fine."""
        if not self._stream.closed:
            index = np.array([*self._offsets, self._end], dtype="<u8").tobytes()
            self._write(END)
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


class ImageShard:
    """Random access to a shard by position among its members, through a memory map.

    Rows without an image have no member; `find` takes a key and answers None for those.
    """

    def __init__(self, tar_path: Path, idx_path: Path) -> None:
        self.path = tar_path
        try:
            self._offsets = np.fromfile(idx_path, dtype="<u8").astype(np.int64)
            with tar_path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as problem:  # an empty file cannot be mapped: ValueError
            raise HarmonError(f"the shard {tar_path} cannot be opened: {problem}; run `harmon audit`") from problem
        fits = len(self._offsets) > 0 and int(self._offsets[-1]) + len(END) <= len(self._map)
        if not fits or (np.diff(self._offsets) < 2 * BLOCK).any():
            raise HarmonError(f"the index {idx_path} does not belong to {tar_path}; run `harmon audit --deep`")
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def read(self, row: int) -> Image:
        """The sample at position `row` (0-based, among the members). Raises IndexError outside the shard."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has {len(self)} images; there is no position {row}")
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        key, extension, data, after = self._member(start, end)
        view_key, view_extension, view, _ = self._member(after, end)
        if view_key != key or view_extension != "json":
            raise HarmonError(f"{self.path} has no {key}.json beside its image; run `harmon audit --deep`")
        try:
            return Image(key, extension, data, dict(json.loads(view)))
        except (ValueError, TypeError) as problem:
            raise HarmonError(f"{self.path}: {key}.json is no JSON object; run `harmon audit --deep`") from problem

    def _member(self, start: int, limit: int) -> tuple[str, str, bytes, int]:
        """Key, extension, data and the offset after it, of the member whose header is at `start`."""
        header = self._map[start : start + BLOCK]
        name = parse_header(header)
        end = start + BLOCK + name.size if name else limit + 1
        if name is None or end > limit:
            raise HarmonError(f"{self.path} has no member at offset {start}; run `harmon audit --deep`")
        return name.key, name.extension, self._map[start + BLOCK : end], end + _padding(name.size)

    def keys(self) -> list[str]:
        """Keys of the members in order (reads their headers only)."""
        return list(self._positions())

    def find(self, key: str) -> Image | None:
        """The sample with this key, or None where the shard has no image for it."""
        row = self._positions().get(key)
        return None if row is None else self.read(row)

    def _positions(self) -> dict[str, int]:
        if self._rows is None:
            starts = [int(offset) for offset in self._offsets[:-1]]
            names = (parse_header(self._map[start : start + BLOCK]) for start in starts)
            self._rows = {name.key: row for row, name in enumerate(names) if name is not None}
        return self._rows

    def close(self) -> None:
        """Let go of the map; reading afterwards fails."""
        self._map.close()


@dataclass(frozen=True)
class MemberName:
    """What a member's header says: key, extension, size of its data in bytes."""

    key: str
    extension: str
    size: int


def parse_header(header: bytes) -> MemberName | None:
    """The member that a ustar header describes, or None if it is not one that ShardWriter writes."""
    member = MEMBER.fullmatch(header[:100].rstrip(b"\0"))
    size = header[124:135]
    if len(header) != BLOCK or member is None or header[257:263] != b"ustar\0" or not _octal(size):
        return None
    return MemberName(member[1].decode(), member[2].decode(), int(size, 8))


def _octal(digits: bytes) -> bool:
    return re.fullmatch(rb"[0-7]{11}", digits) is not None


def scan(tar_path: Path) -> Iterator[tuple[int, str]]:
    """Offset and key of each sample, read from the archive alone (not its index).

    Raises HarmonError at the first place where the archive is not what ShardWriter writes: a damaged header,
    members out of pairs, a missing end, anything after it.
    """
    with tar_path.open("rb") as stream:
        length = os.fstat(stream.fileno()).st_size
        offset = 0
        while (header := stream.read(BLOCK)) != END[:BLOCK]:
            image = _checked(header, tar_path, offset)
            view_at = offset + BLOCK + image.size + _padding(image.size)
            stream.seek(view_at)
            view = _checked(stream.read(BLOCK), tar_path, view_at)
            if view.key != image.key or view.extension != "json" or image.extension == "json":
                raise HarmonError(f"{tar_path}: the members at {offset} and {view_at} are no image with its view")
            yield offset, image.key
            offset = view_at + BLOCK + view.size + _padding(view.size)
            stream.seek(offset)
        if length != offset + len(END):
            raise HarmonError(f"{tar_path}: the archive ends at {offset + len(END)} but the file at {length} bytes")


def _checked(header: bytes, tar_path: Path, offset: int) -> MemberName:
    name = parse_header(header)
    if name is None or _header(f"{name.key}.{name.extension}", name.size) != header:
        raise HarmonError(f"{tar_path}: the bytes at {offset} are no member header")
    return name
