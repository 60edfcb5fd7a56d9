"""Where a dataset's files lie, and the one way to add to them: create if absent, never overwrite."""

import hashlib
import logging
import mmap
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from pipelines.errors import HarmonError
from pipelines.location import Location, S3Url, location

TEMPORARY_PREFIX = ".put-"
TEMPORARY_SUFFIX = ".tmp"
CHUNK = 1 << 20  # bytes hashed or copied at a time

log = logging.getLogger(__name__)


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
    """The files below one root, which are only ever added whole and never overwritten."""

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


class LocalStore(Store):
    """A local folder.

    A put is a temporary file in the target's folder, fsync, `os.link` to the final name (which fails where
    the name exists), fsync of the folder. So a reader never sees part of a file, whatever was killed when.
    """

    root: Path
    lag = 0.0

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, source: bytes | Path) -> StoredFile:
        target = self.local(path)
        make_folder(target.parent)
        temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        try:
            digest = hashlib.sha256()
            with temporary.open("xb") as stream:
                for chunk in _chunks(source):
                    digest.update(chunk)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            return self._link(temporary, path, digest.hexdigest())
        except OSError as problem:
            raise HarmonError(f"{target} could not be written: {problem}; see to the disk and run again") from problem
        finally:
            temporary.unlink(missing_ok=True)

    def take(self, path: str, source: Path, sha256: str) -> StoredFile:
        target = self.local(path)
        make_folder(target.parent)
        try:
            if source.stat().st_dev != target.parent.stat().st_dev:
                stored = self.put(path, source)
                if stored.sha256 != sha256:
                    raise HarmonError(f"{source} changed between its writing and {target}; run the step again")
            else:
                with source.open("rb") as stream:
                    os.fsync(stream.fileno())
                stored = self._link(source, path, sha256)
        except OSError as problem:
            raise HarmonError(f"{target} could not be written: {problem}; see to the disk and run again") from problem
        source.unlink()
        return stored

    def _link(self, finished: Path, path: str, sha256: str) -> StoredFile:
        """Give the finished file its final name, or adopt an equal file that has it already."""
        target = self.local(path)
        size = finished.stat().st_size
        try:
            os.link(finished, target)
        except FileExistsError:
            there = file_sha256(target)
            if target.stat().st_size != size or there != sha256:
                raise self.other(path, there, sha256) from None
            log.debug("adopted %s from an earlier attempt", target)
        _sync_folder(target.parent)
        return StoredFile(path, size, sha256)

    def read(self, path: str) -> bytes:
        target = self.local(path)
        try:
            return target.read_bytes()
        except OSError as problem:
            raise HarmonError(f"{target} cannot be read: {problem.strerror}; run `harmon audit`") from problem

    def open(self, path: str) -> BinaryIO:
        target = self.local(path)
        try:
            return target.open("rb")
        except OSError as problem:
            raise HarmonError(f"{target} cannot be read: {problem.strerror}; run `harmon audit`") from problem

    def view(self, path: str) -> ByteView:
        return mapped(self.local(path))

    def readable(self, path: str) -> Path:
        return self.local(path)

    def size(self, path: str) -> int | None:
        target = self.local(path)
        return target.stat().st_size if target.is_file() else None

    def sizes(self, folder: str = "") -> dict[str, int | None]:
        start = self.local(folder) if folder else self.root
        return dict(sorted(self._walk(start)))

    def _walk(self, start: Path) -> Iterator[tuple[str, int | None]]:
        pending = [start]
        while pending:
            try:
                entries = list(os.scandir(pending.pop()))
            except FileNotFoundError:  # absent at first, or removed while we looked
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                try:
                    size = entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
                except FileNotFoundError:
                    continue
                yield Path(entry.path).relative_to(self.root).as_posix(), size

    def local(self, path: str) -> Path:
        return self.root.joinpath(*self.checked(path).split("/"))

    def work(self, folder: str) -> Path:
        return self.local(folder)

    def remove(self, path: str) -> None:
        target = self.local(path)
        try:
            target.unlink(missing_ok=True)
            if target.parent.is_dir():
                _sync_folder(target.parent)
        except OSError as problem:
            raise HarmonError(f"{target} cannot be deleted: {problem.strerror}; mend that and run again") from problem

    def is_there(self) -> bool:
        return self.root.is_dir()

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.is_there() else []


def open_store(root: str | Path | S3Url) -> Store:
    """The store at a local folder or at s3://bucket/prefix. Raises ConfigurationError for any other URL."""
    place = location(root)
    if isinstance(place, S3Url):
        from pipelines.s3 import S3Store

        return S3Store(place)
    return LocalStore(place)


def mapped(path: Path) -> ByteView:
    """A local file as a memory map. Raises HarmonError where it is absent or empty."""
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as problem:  # an empty file cannot be mapped: ValueError
        raise HarmonError(f"{path} cannot be opened: {problem}; run `harmon audit`") from problem


def remove_folder(folder: Path) -> None:
    """Delete a folder of temporaries; absent is fine, and what cannot be deleted stays a leftover."""
    shutil.rmtree(folder, ignore_errors=True)


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def make_folder(folder: Path) -> None:
    """Create a folder and its parents durably: each new name is synced into the folder that holds it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as problem:
        raise HarmonError(f"the folder {folder} cannot be made: {problem.strerror}") from problem
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
