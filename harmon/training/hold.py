"""Who trains a stage: one trainer at a time, which a file beside it names and its trainer renews.

The file lies in the stage's folder and, where the stage has one, in the store of its checkpoints: machines may share
either without the other. Clocks are never compared: who waits measures by its own how long the file has stayed as it
was. The times in it are for a person to read.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harmon.training.failure import FinalError
from pipelines.errors import HarmonError
from pipelines.storage import OtherBytes, open_store

FILE = "trainer.json"
RENEW_SECONDS, LAPSE_SECONDS = 5.0, 60.0
PATIENCE_SECONDS = 15.0  # for a trainer that renews still, since its machine may only be ending it
SETTLE_SECONDS = 1.0  # in which another that takes over the same file has done so
log = logging.getLogger(__name__)


class Hold:
    """This process's hold on the stage in `folder`, whose checkpoints may lie in a `store`.

    One `owner` may take it over from itself at once, as when Ray starts its workers again; None: nobody else. A hold of
    a process that is gone from this machine lasts no longer, one on another machine until it lapses.
    """

    def __init__(
        self,
        folder: Path,
        owner: str | None = None,
        store: str | None = None,
        renew: float = RENEW_SECONDS,
        lapse: float = LAPSE_SECONDS,
    ) -> None:
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": _now(),
            "owner": owner or secrets.token_hex(8),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "token": secrets.token_hex(8),
        }
        self._files = [HoldFile(root, me, lapse) for root in (str(folder), store) if root is not None]
        self._taken: list[HoldFile] = []
        self._renew_seconds = renew
        self._over: threading.Event | None = None
        self._lost: str | None = None

    def take(self) -> None:
        """Take it, and renew it from a thread until `leave`. Raises FinalError where another trainer holds it."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, args=(self._over,), name="hold", daemon=True)
        self._thread.start()  # it renews the first file while the second is waited for
        try:
            for file in self._files:
                file.wait_until_free()
                self._taken.append(file)
        except BaseException:
            self.leave()
            raise

    def check(self, now: bool = False) -> None:
        """Raises FinalError where another trainer has taken it over, as after this process slept for too long. `now`:
        as its files say now, and not when they were renewed last; HarmonError where they cannot be read.
        """
        if now:
            self._renew_all()
        if self._lost is not None:
            raise FinalError(self._lost)

    def leave(self) -> None:
        """Give it up, where it is taken."""
        if self._over is None:
            return
        self._over.set()
        self._thread.join(self._renew_seconds)  # or it might write the file once more
        self._over = None
        while self._taken:
            file = self._taken.pop()
            try:
                file.remove()
            except HarmonError as error:  # it lapses
                log.warning("%s stays until it lapses: %s", file.where, error)

    def _renew(self, over: threading.Event) -> None:
        while self._lost is None and not over.wait(self._renew_seconds):
            try:
                self._renew_all()
            except HarmonError as error:  # its place may be back before it lapses
                log.warning("a hold was not renewed: %s", error)

    def _renew_all(self) -> None:
        for file in list(self._taken):
            if other := file.renewed():
                self._lost = f"{_who(other)} has taken over the stage in {file.root}; this one stops."


class HoldFile:
    """The file of a hold at one place, a folder or s3://bucket/prefix; `me` is what it says of its holder."""

    def __init__(self, root: str, me: dict[str, Any], lapse: float) -> None:
        self.root, self._me, self._lapse = root, me, lapse
        self._store = open_store(root)

    @property
    def where(self) -> str:
        """Its full name, for messages."""
        return self._store.where(FILE)

    def wait_until_free(self) -> None:
        """Return once it names this process. Raises FinalError where another trainer renews it."""
        asked = changed = time.monotonic()
        seen = there = self._read()
        while True:
            if there is None:
                if self._create():
                    return
            elif self._has_ended(there) or time.monotonic() - changed > self._lapse:
                self._store.replace(FILE, self._said())
                time.sleep(SETTLE_SECONDS)  # of several that find it lapsed, the last one has it
                if self._is_mine(self._read()):
                    return
            elif seen != there:
                seen, changed = there, time.monotonic()
                if changed - asked > min(PATIENCE_SECONDS, self._lapse):
                    since = there.get("since")
                    raise FinalError(
                        f"{_who(there)} trains the stage in {self.root} since {since}; wait for it, or end it."
                    )
            time.sleep(0.2)
            there = self._read()

    def renewed(self) -> dict[str, Any] | None:
        """Write it anew, unless another has taken it over: what that one says."""
        there = self._read()
        if there is not None and not self._is_mine(there):
            return there
        self._store.replace(FILE, self._said())
        return None

    def remove(self) -> None:
        """Delete it where it is this process's."""
        if self._is_mine(self._read()):
            self._store.remove(FILE)

    def _has_ended(self, there: dict[str, Any]) -> bool:
        """Whether what holds it is a start of our own owner's before this one, or gone from this machine."""
        if there.get("owner") == self._me["owner"]:
            return True
        here = self._me["machine"] is not None and there.get("machine") == self._me["machine"]
        return here and _started(int(there.get("pid", 0))) != there.get("started")

    def _create(self) -> bool:
        """Write the file where there is none: of several that try, one does."""
        for last in (False, False, True):
            try:
                self._store.put(FILE, self._said())
                return True
            except OtherBytes:
                return False
            except HarmonError:  # one that was there may have gone while it was looked at
                if last:
                    raise
        return False

    def _said(self) -> bytes:
        return (json.dumps(self._me | {"renewed": _now()}) + "\n").encode()

    def _read(self) -> dict[str, Any] | None:
        """What the file says; nothing in particular where it is damaged, and None where there is none."""
        if not self._store.exists(FILE):
            return None
        try:
            said = json.loads(self._store.read(FILE))
        except HarmonError:
            if self._store.exists(FILE):
                raise
            return None  # its holder has left meanwhile
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _is_mine(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("token") == self._me["token"]


def _who(there: dict[str, Any]) -> str:
    return f"Process {there.get('pid')} on {there.get('host')}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _machine() -> str | None:
    """This machine since its start, and its space of process ids: containers have their own. None: not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine started, in its clock ticks, so that a later one of the same id is told apart.

    None where there is none, or it has ended.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
