"""What an attempt at a shard keeps beside the data: lock, journal, temporaries. Never data."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError

DAMAGED = "damaged"  # folder of WORK in which a repair keeps what it takes away
ANSWERS = "answers"  # folder of WORK in which recaptionings keep answers that no commit holds yet
WORK = ".work"  # folder of a dataset below which nothing is data
PATIENCE = 60.0  # seconds to wait for another process that holds the shard, such as an orphan of a killed flow

log = logging.getLogger(__name__)

_held: dict[Path, tuple[int, int]] = {}  # lock file -> (descriptor, pid)


def is_held(folder: Path) -> bool:
    """Whether a living process holds the lock of a shard below `folder`, the work of one step."""
    for lock in folder.glob("*/lock"):
        with contextlib.suppress(FileNotFoundError), lock.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


@contextlib.contextmanager
def claim(folder: Path, refusal: str) -> Iterator[None]:
    """Hold `folder`, which goes afterwards, against every other process and thread of this machine.

    Raises HarmonError(`refusal`) at once where another holds it. The death of the holder lets it go.
    """
    place = folder / "claim"  # a level down, as the workspace of a shard is, so that `is_held` sees it
    descriptor = Workspace(place).try_lock()
    if descriptor is None:
        raise HarmonError(refusal)
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(descriptor)
        for parent in (folder, folder.parent):
            with contextlib.suppress(OSError):  # not empty, or gone
                parent.rmdir()


class Journal:
    """Append-only JSON lines, each on disk before `append` returns.

    A process killed while appending leaves a torn last line; it is dropped when the journal is opened again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()

    def entries(self) -> list[dict[str, Any]]:
        """Every complete entry, oldest first."""
        if not self.path.exists():
            return []
        entries = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError as problem:
                raise HarmonError(f"line {number} of journal {self.path} is damaged; delete the file") from problem
            entries.append(entry)
        return entries

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add entries (JSON objects) with one write and one fsync."""
        data = b"".join(canonical_json(dict(entry)) + b"\n" for entry in entries)
        with self.path.open("ab", buffering=0) as stream:
            stream.write(data)
            os.fsync(stream.fileno())

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as stream:
            data = stream.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                log.info("dropped a torn last line of %d bytes from %s", len(data) - whole, self.path)
                stream.truncate(whole)
                os.fsync(stream.fileno())


class Workspace:
    """The local folder of one (step, shard), held by one process at a time.

    The lock is an flock, so the death of its holder, kill -9 included, releases it. Within a process it is
    held once: opening the workspace again takes it over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._lock = self.folder / "lock"

    def acquire(self, patience: float = PATIENCE) -> None:
        """Hold the workspace; waits up to `patience` seconds for another process, then raises HarmonError."""
        if _held.get(self._lock, (0, 0))[1] == os.getpid() and self._lock.exists():
            return
        deadline = time.monotonic() + patience
        while (descriptor := self.try_lock()) is None:
            if time.monotonic() > deadline:
                raise HarmonError(
                    f"another process is writing {self.folder} and has not ended in {patience:.0f} s; "
                    "wait for it, or stop it, then run again"
                )
            time.sleep(0.05)
        _held[self._lock] = (descriptor, os.getpid())

    def try_lock(self) -> int | None:
        """A descriptor that holds the lock file standing at this path, or None."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the holder has just finished and removed the folder
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), self._lock.stat()):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # held by another, or removed by its last holder: the caller tries again
        os.close(descriptor)
        return None

    def journal(self) -> Journal:
        """The shard's journal, which outlives a killed attempt."""
        return Journal(self.folder / "journal.jsonl")

    def fresh(self, name: str) -> Path:
        """An empty folder of temporaries; what a killed attempt left in it is deleted."""
        folder = self.folder / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def discard(self) -> None:
        """Delete everything and let go: the shard's receipt stands."""
        shutil.rmtree(self.folder, ignore_errors=True)
        descriptor, _ = _held.pop(self._lock, (None, 0))
        if descriptor is not None:
            os.close(descriptor)
