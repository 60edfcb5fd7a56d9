"""Where a dataset's files lie, and the one way to add to them: create if absent, never overwrite."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from pipelines.errors import HarmonError
from pipelines.location import Location, S3Url, location

TEMPORARY_PREFIX = ".put-"
TEMPORARY_SUFFIX = ".tmp"
CHUNK = 1 << 20  # bytes hashed or copied at a time
ABANDONED = timedelta(days=1)  # age from which nobody is taken to be at work on an upload any more


class OtherBytes(HarmonError):
    """A put found its name taken by a file with other bytes."""


@dataclass(frozen=True)
class StoredFile:
    """A file that stands in a store: POSIX path relative to the root, length in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Upload:
    """A large upload that was begun and never completed: invisible as a file, yet paid for."""

    path: str
    id: str
    begun: datetime

    @property
    def abandoned(self) -> bool:
        """Whether it is so old that it may be dropped; a younger one may be another machine's, still under way."""
        return datetime.now(UTC) - self.begun >= ABANDONED


class ByteView(Protocol):
    """A stored file as bytes to be sliced: a memory map, or ranged reads."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...

    def close(self) -> None: ...


def is_temporary(path: str) -> bool:
    """Whether `path` is named as an unfinished put, which is never data."""
    name = PurePosixPath(path).name
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, read in bounded pieces."""
    with path.open("rb") as stream:
        return stream_sha256(stream)


def stream_sha256(stream: BinaryIO) -> str:
    """SHA-256 of what is left in a stream, read in bounded pieces."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]  # every binary stream has it
        digest.update(buffer[:count])
    return digest.hexdigest()


class Store(ABC):
    """The files below one root, which are only ever added whole and never overwritten, `replace` aside."""

    root: Location
    lag: float
    """Seconds for which a listing may be taken for the present one when data are read."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    @abstractmethod
    def put(self, path: str, source: bytes | Path) -> StoredFile:
        """Create `path` from bytes or a copy of a local file.

        A file already there is read back whole: equal bytes are adopted (an earlier attempt wrote them),
        other bytes raise OtherBytes, a HarmonError.
        """

    @abstractmethod
    def take(self, path: str, source: Path, sha256: str) -> StoredFile:
        """Like `put` for a finished local file that nobody else will touch again: moved, not copied.

        `sha256` is what its writer computed while writing; where bytes are copied, they are checked against it.
        """

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Write a small file at once, also over one that is there. Never for data: for who is at work on them."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file. Raises HarmonError where it is absent or unreadable."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """The file for reading at any place; only what is read is fetched."""

    @abstractmethod
    def view(self, path: str) -> ByteView:
        """The file as bytes to be sliced. Raises HarmonError where it is absent or empty."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int | None]:
        """Relative path to length in bytes of everything below `folder` that is not a folder, sorted.

        Temporaries are included; what is no regular file, such as a link, has None.
        """

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Length in bytes, or None where there is no such file."""

    @abstractmethod
    def local(self, path: str) -> Path:
        """The file's place on this machine.

        Raises HarmonError for a path that could leave the root, and where the store is on no local disk.
        """

    @abstractmethod
    def work(self, folder: str) -> Path:
        """A local folder for what an attempt keeps beside the data: locks, journals, temporaries."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file; absent is fine. Only for what forgetting, or a repair that was asked for, takes away."""

    @abstractmethod
    def is_there(self) -> bool:
        """Whether anything stands at the root."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders right below the root, sorted; none where there is no such root."""

    def readable(self, path: str) -> Path | BinaryIO:
        """What a reader of columns opens: the local file, or a stream that fetches ranges."""
        return self.open(path)

    def uploads(self) -> list[Upload]:
        """Large uploads that were begun and never completed."""
        return []

    def drop_upload(self, upload: Upload) -> None:
        """Give up an unfinished upload; one that is gone is fine."""
        raise HarmonError(f"{self.root} knows no unfinished uploads; there is nothing to drop")

    def where(self, path: str) -> str:
        """The file's full name, for messages."""
        return f"{self.root}/{path}"

    def sha256(self, path: str) -> str:
        """SHA-256 of a file, read in bounded pieces."""
        with self.open(path) as stream:
            return stream_sha256(stream)

    def exists(self, path: str) -> bool:
        """Whether a file of this name stands."""
        return self.size(path) is not None

    def list(self, folder: str = "") -> list[str]:
        """Relative paths of everything below `folder` that is not a folder, sorted; temporaries included."""
        return list(self.sizes(folder))

    def checked(self, path: str) -> str:
        """`path`, if it lies inside the root. Raises HarmonError for one that could leave it."""
        if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise HarmonError(f"{path!r} is no path inside {self.root}: it must be relative and without '..'")
        return path

    def other(self, path: str, there: str, mine: str) -> OtherBytes:
        """The error of a put whose name is taken by other bytes."""
        return OtherBytes(
            f"{self.where(path)} already holds other bytes (sha256 {there[:12]}, not {mine[:12]}) and files "
            "are never overwritten; run `harmon audit`, and move the file away if it does not belong"
        )


def open_store(root: str | Path | S3Url) -> Store:
    """The store at a local folder or at s3://bucket/prefix. Raises ConfigurationError for any other URL."""
    place = location(root)
    if isinstance(place, S3Url):
        from pipelines.s3 import S3Store

        return S3Store(place)
    from pipelines.disk import LocalStore

    return LocalStore(place)
