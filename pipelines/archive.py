"""An image archive read from end to end, without its index: what audits, repairs and adoptions judge it by."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from pipelines.canonical import json_object
from pipelines.errors import HarmonError
from pipelines.ustar import BLOCK, END, MAX_VIEW, member, padding, size_of

PIECE = 1 << 20  # bytes read and hashed at a time, whole blocks: they stay in a processor's cache between the two


@dataclass(frozen=True)
class Archive:
    """An archive as its bytes tell it."""

    samples: tuple[tuple[int, str], ...]
    """Offset and key of each sample up to the first thing that is wrong."""
    sha256: str
    problem: str | None
    """The first place where it is not what ShardWriter writes: a damaged header, members out of pairs, no end."""


class _Reading:
    """A stream read forward, piece by piece into one buffer, each byte hashed once.

    The buffer holds the bytes [start, start + held). Pieces are whole blocks, but for the last.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self._view = memoryview(bytearray(PIECE))
        self.start = self.held = 0

    def next(self) -> bool:
        """Go on to the next piece; False at the end."""
        self.start += self.held
        self.held = 0
        while self.held < PIECE:
            count: int = self._stream.readinto(self._view[self.held :])  # type: ignore[attr-defined]
            if not count:
                break
            self.held += count
        self.digest.update(self._view[: self.held])
        return self.held > 0

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset`, which never goes back; fewer at the end of the file."""
        at = offset - self.start
        if at + size <= self.held:  # nearly always
            return bytes(self._view[at : at + size])
        while offset >= self.start + self.held and self.next():
            pass
        at = offset - self.start
        data = bytes(self._view[at : min(at + size, self.held)])
        while len(data) < size and self.next():  # it goes on in the next piece
            data += bytes(self._view[: min(size - len(data), self.held)])
        return data

    def is_end(self, offset: int) -> bool:
        """Whether the blocks at `offset` are the end marker."""
        return self.read(offset, len(END)) == END


def read_archive(stream: BinaryIO, where: str) -> Archive:
    """Read every byte once, in bounded memory: its checksum, its members by their headers, their JSON views."""
    reading = _Reading(stream)
    samples: list[tuple[int, str]] = []
    problem, offset = None, 0
    while image := member(reading.read(offset, BLOCK)):
        view_at = offset + BLOCK + image.size + padding(image.size)
        size = size_of(reading.read(view_at, BLOCK), image.key, "json")
        if size is None or image.extension == "json":
            problem = f"{where}: the members at {offset} and {view_at} are no image with its view"
            break
        if size > MAX_VIEW or not _is_view(reading.read(view_at + BLOCK, size), image.key):
            problem = f"{where}: the member at {view_at} is no JSON object that describes {image.key}"
            break
        samples.append((offset, image.key))
        offset = view_at + BLOCK + size + padding(size)
    ended = problem is None and reading.is_end(offset)
    while reading.next():
        pass
    if problem is None and not ended:
        problem = f"{where}: the bytes at {offset} are neither a member's header nor the archive's end"
    elif problem is None and reading.start != offset + len(END):
        problem = f"{where}: the archive ends at {offset + len(END)} but the file at {reading.start}"
    return Archive(tuple(samples), reading.digest.hexdigest(), problem)


def _is_view(data: bytes, key: str) -> bool:
    """Whether this is a JSON object, about this sample if it names one."""
    try:
        return bool(_parsed(data).get("key", key) == key)
    except ValueError:
        return False


def _parsed(data: bytes) -> dict[str, Any]:
    """What `json_object` takes, in a third of its time; only integers beyond 64 bits may come out as other numbers."""
    if data[:1] == b"{" and data[-1:] == b"}":  # without whitespace around it
        try:
            told: dict[str, Any] = orjson.loads(data)
        except ValueError:  # the stricter of the two
            pass
        else:
            return told
    return json_object(data)


def scan(tar_path: Path) -> Iterator[tuple[int, str]]:
    """Offset and key of each sample, read from the archive alone (not its index).

    Raises HarmonError at the first place where the archive is not what ShardWriter writes.
    """
    with tar_path.open("rb", buffering=0) as stream:
        archive = read_archive(stream, str(tar_path))
    yield from archive.samples
    if archive.problem:
        raise HarmonError(archive.problem)


def index_of(samples: Sequence[tuple[int, str]], size: int) -> bytes:
    """The index of an archive of `size` bytes whose samples begin at these offsets."""
    return np.array([*(offset for offset, _ in samples), size - len(END)], dtype="<u8").tobytes()
