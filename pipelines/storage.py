"""Where a dataset's files lie, and the one way to add to them: create if absent, never overwrite."""

import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipelines.errors import ConfigurationError, HarmonError

TEMPORARY_PREFIX = ".put-"
TEMPORARY_SUFFIX = ".tmp"
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # how a URL begins, as a part of a path: Path takes // for /
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


def is_temporary(path: str) -> bool:
    """Whether `path` is named as an unfinished put, which is never data."""
    name = PurePosixPath(path).name
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, read in bounded pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Store:
    """A local folder whose files are only ever added whole.

    A put is a temporary file in the target's folder, fsync, `os.link` to the final name (which fails where
    the name exists), fsync of the folder. So a reader never sees part of a file, whatever was killed when.
    """

    def __init__(self, root: str | Path) -> None:
        """Raises ConfigurationError for a URL, such as s3://bucket/name: object stores are not supported yet."""
        self.root = _local_root(root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def put(self, path: str, source: bytes | Path) -> StoredFile:
        """Create `path` from bytes or a copy of a local file.

        A file already there is read back whole: equal bytes are adopted (an earlier attempt wrote them),
        other bytes raise OtherBytes, a HarmonError.
        """
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
        """Like `put` for a finished local file that nobody else will touch again: moved, not copied.

        `sha256` is what its writer computed while writing. On another filesystem it is copied and checked.
        """
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
                raise OtherBytes(
                    f"{target} already holds other bytes (sha256 {there[:12]}, not {sha256[:12]}) and files "
                    "are never overwritten; run `harmon audit`, and move the file away if it does not belong"
                ) from None
            log.debug("adopted %s from an earlier attempt", target)
        _sync_folder(target.parent)
        return StoredFile(path, size, sha256)

    def read(self, path: str) -> bytes:
        """The whole file. Raises HarmonError where it is absent or unreadable."""
        target = self.local(path)
        try:
            return target.read_bytes()
        except OSError as problem:
            raise HarmonError(f"{target} cannot be read: {problem.strerror}; run `harmon audit`") from problem

    def exists(self, path: str) -> bool:
        """Whether a file of this name stands."""
        return self.local(path).is_file()

    def size(self, path: str) -> int | None:
        """Length in bytes, or None where there is no such file."""
        target = self.local(path)
        return target.stat().st_size if target.is_file() else None

    def list(self, folder: str = "") -> list[str]:
        """Relative paths of everything below `folder` that is not a folder, sorted; temporaries included."""
        start = self.local(folder) if folder else self.root
        return sorted(self._walk(start))

    def _walk(self, start: Path) -> Iterator[str]:
        for folder, folders, names in os.walk(start):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            for name in names + links:
                yield Path(folder, name).relative_to(self.root).as_posix()

    def local(self, path: str) -> Path:
        """The file's place on this machine. Raises HarmonError for a path that could leave the root."""
        parts = path.split("/")
        if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise HarmonError(f"{path!r} is no path inside {self.root}: it must be relative and without '..'")
        return self.root.joinpath(*parts)

    def remove(self, path: str) -> None:
        """Delete a file; absent is fine. Only for what forgetting takes away."""
        target = self.local(path)
        try:
            target.unlink(missing_ok=True)
            if target.parent.is_dir():
                _sync_folder(target.parent)
        except OSError as problem:
            raise HarmonError(f"{target} cannot be deleted: {problem.strerror}; mend that and run again") from problem

    def remove_folder(self, folder: str) -> None:
        """Delete a folder of temporaries; absent is fine, and what cannot be deleted stays a leftover."""
        shutil.rmtree(self.local(folder), ignore_errors=True)


def _local_root(root: str | Path) -> Path:
    path = Path(root)
    if any(SCHEME.fullmatch(part) for part in path.parts):
        raise ConfigurationError(
            f"{root} is no local folder, and object stores are not supported yet; name a local folder"
        )
    return path


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
