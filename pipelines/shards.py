"""Image shards: plain ustar files that any WebDataset reader opens, and an index for random access.

A sample is two adjacent members, `KEY.<extension>` and `KEY.json`. The index is little-endian u64: the offset
of each sample's first header, then the offset at which the archive's end marker begins.
"""

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from pipelines.canonical import canonical_json, json_object
from pipelines.disk import mapped
from pipelines.errors import HarmonError
from pipelines.storage import ByteView, Store
from pipelines.ustar import BLOCK, END, HEADER, MAX_MEMBER, MAX_VIEW, header, member, padding

BATCH = 1 << 21  # bytes that wait to be written together: many for a system call, few enough to hold
PARTS = 1000  # parts that wait at most; Linux takes 1024 a call
PAGE = 4096  # writes that end between pages cost the kernel half as much again
AHEAD = 1 << 26  # bytes of disk asked for at a time, before what fills them is written

KEY = re.compile(r"[0-9a-f]{32}")
EXTENSION = re.compile(r"[a-z0-9]{1,8}")


class Image(NamedTuple):
    """One sample of an image shard: encoded bytes as stored, and the JSON view beside them."""

    key: str
    extension: str
    data: bytes
    view: dict[str, object]


def index_path(tar: Path) -> Path:
    """Where the index of a shard lies: beside it, with `.idx` appended."""
    return tar.with_name(tar.name + ".idx")


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
        self._view = b""  # of the last sample, with the padding around it: goes out with the next header, as one part
        self._waiting: list[bytes | memoryview] = []
        self._written = 0
        self._allocated = 0
        self._failed = False
        self._digest = hashlib.sha256()
        try:
            self._stream = path.open("xb", buffering=0)
        except OSError as problem:
            raise HarmonError(f"the shard {path} cannot be started: {problem.strerror}") from problem

    def add(self, key: str, image: bytes, extension: str, view: Mapping[str, object]) -> None:
        """Append one sample; `extension` is the sniffed type without a dot, lower case ("jpg", "png").

        Raises HarmonError for what cannot be a sample, and where the disk refuses; the shard is then lost.
        """
        if not KEY.fullmatch(key):
            raise HarmonError(f"{key!r} is no sample key for {self.path}: 32 lower-case hex digits are needed")
        if not EXTENSION.fullmatch(extension) or extension == "json":
            raise HarmonError(f"{extension!r} cannot be the image extension of {key} in {self.path}")
        if key in self._known:
            raise HarmonError(f"the key {key} comes twice in {self.path}; keys are unique within a dataset")
        told = canonical_json(view)
        if len(image) > MAX_MEMBER or len(told) > MAX_VIEW:
            raise HarmonError(
                f"{key} is too large for {self.path}: an image may have {MAX_MEMBER} bytes and a JSON view {MAX_VIEW}"
            )
        self._known.add(key)
        self.keys.append(key)
        self._offsets.append(self._end + len(self._view))
        head = self._view + header(key, extension, len(image))
        self._waiting += (head, image)
        self._end += len(head) + len(image)
        self._view = b"".join(
            (bytes(padding(len(image))), header(key, "json", len(told)), told, bytes(padding(len(told))))
        )
        if self._end - self._written >= BATCH or len(self._waiting) >= PARTS:
            self._flush(self._end - self._end % PAGE)

    def _flush(self, until: int) -> None:
        """Hand over what waits before the offset `until`; the rest goes on waiting."""
        over, rest = self._end - until, list[bytes | memoryview]()
        while over:
            part = self._waiting.pop()
            cut = max(0, len(part) - over)
            rest.insert(0, part[cut:])
            over -= len(part) - cut
            if cut:
                self._waiting.append(memoryview(part)[:cut])
        if self._waiting:
            for part in self._waiting:  # not one by one in `add`, whose own work would find its cache full of pictures
                self._digest.update(part)
            self._allocate(until)
            try:
                written = os.writev(self._stream.fileno(), self._waiting)
                if written < until - self._written:  # a system call may fall short of what it was given
                    missing = memoryview(b"".join(self._waiting))[written:]
                    while missing:
                        missing = missing[self._stream.write(missing) :]
            except OSError as problem:
                self._failed = True  # nobody knows what of it stands in the file
                raise HarmonError(
                    f"{self.path} cannot be written: {problem.strerror}; mend that and run again"
                ) from problem
        self._waiting, self._written = rest, until

    def _allocate(self, until: int) -> None:
        """Have the disk lay out space ahead in one piece: cheaper than page by page. `close` cuts off the rest."""
        if until > self._allocated:
            length = max(AHEAD, until - self._allocated)
            with contextlib.suppress(OSError):  # only a saving: a disk that is really full says so at the write
                os.posix_fallocate(self._stream.fileno(), self._allocated, length)
            self._allocated += length

    def close(self) -> int:
        """Write the end marker and the index; returns the number of samples. Closing twice is fine."""
        if self._failed:
            self._stream.close()
            raise HarmonError(f"{self.path} was not written to its end; run the step again")
        if not self._stream.closed:
            index = np.array([*self._offsets, self._end + len(self._view)], dtype="<u8").tobytes()
            self._waiting.append(self._view + END)
            self._end += len(self._waiting[-1])
            self._flush(self._end)
            self._stream.truncate(self._end)
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
            return Image(key, extension, data, json_object(view))
        except ValueError as problem:
            raise HarmonError(f"{self.where}: {key}.json is no JSON object; run `harmon audit --deep`") from problem

    def raw(self, row: int) -> RawSample:
        """Like `read`, with the view's bytes as they stand."""
        if not 0 <= row < len(self._offsets) - 1:
            raise IndexError(f"{self.where} has {len(self)} images; there is no position {row}")
        start, end = self._offsets[row], self._offsets[row + 1]
        # a map is matched and sliced in place; from afar comes the whole sample, once
        block, at = (self._data, start) if self._mapped else (self._data[start:end], 0)
        limit = at + end - start
        if image := HEADER.match(block, at):  # type: ignore[arg-type]  # a map, or bytes
            key, extension, size = image.groups()
            data_at = at + BLOCK
            data_end = data_at + int(size, 8)
            view_at = data_end + padding(data_end)
            view = HEADER.match(block, view_at) if view_at < limit else None  # type: ignore[arg-type]
            if view is not None:
                owner, kind, size = view.groups()
                view_end = view_at + BLOCK + int(size, 8)
                if owner == key and kind == b"json" and view_end <= limit:
                    told = block[view_at + BLOCK : view_end]
                    return RawSample(key.decode(), extension.decode(), block[data_at:data_end], told)
        raise HarmonError(f"{self.where} has no image with its view at offset {start}; run `harmon audit --deep`")

    def keys(self) -> list[str]:
        """Keys of the members in order (reads their headers only)."""
        blocks = (self._data[offset : offset + BLOCK] for offset in self._offsets[:-1])
        return [said.key for block in blocks if (said := member(block)) is not None]

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
