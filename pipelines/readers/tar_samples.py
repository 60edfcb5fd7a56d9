"""Tars read from front to back, gzipped or not: members one at a time, nothing unpacked to disk."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pipelines.errors import HarmonError
from pipelines.readers.paths import BadPath, clean_path

PIECE = 1 << 20  # bytes read at a time


class Member:
    """One member of a tar; its bytes may be read until the next is asked for."""

    def __init__(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        self._archive = archive
        self._info = info
        self.name: str | None = None
        """Clean path; None where it would leave the folder or is no regular file."""
        self.problem = ""
        """Why it has no name."""
        try:
            self.name = clean_path(info.name)
        except BadPath as error:
            self.problem = str(error)
        if not info.isfile():
            self.name, self.problem = None, f"{info.name[:200]!r} is a link or device"

    @property
    def size(self) -> int:
        """Bytes, as the header announces."""
        return self._info.size

    def stream(self) -> IO[bytes]:
        """The bytes, to be read in pieces."""
        stream = self._archive.extractfile(self._info)
        assert stream is not None, "links have no name, and nobody reads what has none"
        return stream

    def read(self) -> bytes:
        """The bytes; the caller has looked at `size`."""
        return self.stream().read()


class _Watched:
    """A stream that remembers what was read last: at the end of a tar, a block of zeros."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        self.last = self._stream.read(size)
        return self.last


def members(path: Path) -> Iterator[Member]:
    """The members of a .tar, .tar.gz or .tgz that are no folders.

    Raises HarmonError where the archive is damaged or cut, also where it only lacks its end marker.
    """
    try:
        with gzip.open(path) if path.suffix in {".gz", ".tgz"} else path.open("rb") as stream:
            watched = _Watched(cast(IO[bytes], stream))
            with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r:") as archive:
                for info in archive:
                    archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                    if not info.isdir():
                        yield Member(archive, info)
                if watched.last != bytes(tarfile.BLOCKSIZE):
                    raise HarmonError(f"{path} is cut: it does not end as a tar does; fetch it anew")
            while path.suffix != ".tar" and stream.read(PIECE):
                pass  # gzip's own checksum stands at its end
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise HarmonError(f"{path} is a damaged or cut archive ({error}); fetch it anew") from None
