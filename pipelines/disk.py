"""A dataset on a local disk: create-if-absent by hard links, reads by memory map."""

import hashlib
import logging
import mmap
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import HarmonError
from pipelines.storage import (
    CHUNK,
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    ByteView,
    Store,
    StoredFile,
    file_sha256,
)

log = logging.getLogger(__name__)


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

    def replace(self, path: str, data: bytes) -> None:
        target = self.local(path)
        make_folder(target.parent)
        try:
            write_whole(target, data)
        except OSError as problem:
            raise HarmonError(f"{target} could not be written: {problem}; see to the disk and run again") from problem

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
        return dict(sorted(self._walk(start, folder)))

    def _walk(self, start: Path, inside: str) -> Iterator[tuple[str, int | None]]:
        pending = [(os.fspath(start), inside)]
        while pending:
            folder, inside = pending.pop()
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:  # absent at first, or removed while we looked
                continue
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, name))
                    continue
                try:
                    size = entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else None
                except FileNotFoundError:
                    continue
                yield name, size

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


def write_whole(path: Path, data: bytes) -> Path:
    """Write a small file at once, also over one that is there, and return `path`: neither a kill nor another process
    that writes the same file leaves or meets a half of it.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        return temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
