"""An image archive read from end to end, without its index: what audits, repairs and adoptions judge it by."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipelines.errors import HarmonError
from pipelines.ustar import BLOCK, END, Member, member, padding

PIECE = 1 << 19  # bytes read and hashed at a time, whole blocks: they stay in a processor's cache between the two


@dataclass(frozen=True)
class Archive:
    """An archive as its bytes tell it."""

    samples: tuple[tuple[int, str], ...]
    """Offset and key of each sample up to the first thing that is wrong."""
    sha256: str
    problem: str | None
    """The first place where it is not what ShardWriter writes: a damaged header, members out of pairs, no end."""


class _Reading:
    """A stream read forward, piece by piece into one buffer, each byte hashed once."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream, self._where = stream, where
        self._digest = hashlib.sha256()
        self._buffer = bytearray(PIECE)
        self._view = memoryview(self._buffer)
        self._start = self._held = 0  # the buffer holds the bytes [start, start + held)

    def _next(self) -> bool:
        """The next piece; False at the end. Only the last piece is short, so that blocks never cross pieces."""
        self._start += self._held
        self._held = 0
        while self._held < PIECE:
            count: int = self._stream.readinto(self._view[self._held :])  # type: ignore[attr-defined]
            if not count:
                break
            self._held += count
        self._digest.update(self._view[: self._held])
        return self._held > 0

    def _reach(self, offset: int) -> int:
        """The place in the buffer of the block at `offset`, a whole number of blocks that only grows."""
        while offset >= self._start + self._held and self._next():
            pass
        return offset - self._start

    def is_zero(self, offset: int) -> bool:
        """Whether the block at `offset` is a half of the end marker."""
        at = self._reach(offset)
        return self._buffer.startswith(END[:BLOCK], at, self._held)

    def member(self, offset: int) -> Member:
        """What the header at `offset` says. Raises HarmonError where there is none."""
        at = self._reach(offset)
        said = member(self._buffer, at, self._held)
        if said is None:
            raise HarmonError(f"{self._where}: the bytes at {offset} are no member header")
        return said

    def finish(self) -> tuple[int, str]:
        """Length and SHA-256 of the whole."""
        while self._next():
            pass
        return self._start, self._digest.hexdigest()


def read_archive(stream: BinaryIO, where: str) -> Archive:
    """Read every byte once, in bounded memory: its checksum, and its members by their headers."""
    reading = _Reading(stream, where)
    samples: list[tuple[int, str]] = []
    problem, offset = None, 0
    try:
        while not reading.is_zero(offset):
            image = reading.member(offset)
            view_at = offset + BLOCK + image.size + padding(image.size)
            view = reading.member(view_at)
            if view.key != image.key or view.extension != "json" or image.extension == "json":
                raise HarmonError(f"{where}: the members at {offset} and {view_at} are no image with its view")
            samples.append((offset, image.key))
            offset = view_at + BLOCK + view.size + padding(view.size)
    except HarmonError as wrong:
        problem = str(wrong)
    ended = problem is None and reading.is_zero(offset + BLOCK)
    length, sha256 = reading.finish()
    if problem is None and (length != offset + len(END) or not ended):
        problem = f"{where}: the archive ends at {offset + len(END)} but the file at {length} bytes"
    return Archive(tuple(samples), sha256, problem)


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
