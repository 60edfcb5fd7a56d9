"""An object far away, read by byte range: as bytes to be sliced, and as a stream that seeks."""

import io
from collections.abc import Callable
from typing import Any

from pipelines.errors import HarmonError
from pipelines.storage import ByteView

Fetch = Callable[[int, int], bytes]
"""Gives the bytes [start, end) of one object."""


class RangedView:
    """An object as bytes to be sliced: a lone read fetches what it wants, reading in order fetches `ahead` bytes."""

    def __init__(self, fetch: Fetch, size: int, ahead: int, where: str) -> None:
        """`fetch` gives the bytes [start, end); `where` is what messages call the object of `size` bytes."""
        self._fetch, self._size, self._ahead, self._where = fetch, size, ahead, where
        self._start = 0
        self._window = b""
        self._next = 0
        """Where the last slice ended: a slice that begins near it reads in order."""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice, /) -> bytes:
        start, end, _ = place.indices(self._size)
        if end <= start:
            return b""
        if not self._start <= start <= end <= self._start + len(self._window):
            in_order = start == self._next and start > 0
            until = max(end, min(start + self._ahead, self._size)) if in_order else end
            self._window, self._start = self._fetch(start, until), start
            if len(self._window) < end - start:
                raise HarmonError(f"{self._where} ends too early; run `harmon audit --deep`")
        self._next = end
        return self._window[start - self._start : end - self._start]

    def close(self) -> None:
        """Nothing is held open."""


class RangedFile(io.RawIOBase):
    """A view as a stream for readers that seek, such as Parquet's."""

    def __init__(self, view: ByteView, name: str) -> None:
        self._view, self.name = view, name
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._view[self._at : self._at + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def size(self) -> int:
        """Length in bytes."""
        return len(self._view)
