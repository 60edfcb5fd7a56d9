"""Who trains a stage: one trainer at a time, which a file in the stage's folder names and its trainer renews.

The folder may be shared by machines. Their clocks are never compared: who waits measures by its own how long the file
has stayed as it was. The times in it are for a person to read.
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

FILE = "trainer.json"
RENEW_SECONDS, LAPSE_SECONDS = 5.0, 60.0
PATIENCE_SECONDS = 15.0  # for a trainer that renews still, since its machine may only be ending it
SETTLE_SECONDS = 1.0  # in which another that takes over the same file has done so
log = logging.getLogger(__name__)


class Hold:
    """This process's hold on the stage in `folder`.

    One `owner` may take it over from itself at once, as when Ray starts its workers again; None: nobody else. A hold of
    a process that is gone from this machine lasts no longer, one on another machine until it lapses.
    """

    def __init__(
        self, folder: Path, owner: str | None = None, renew: float = RENEW_SECONDS, lapse: float = LAPSE_SECONDS
    ) -> None:
        self.path, self._renew_seconds, self._lapse = folder / FILE, renew, lapse
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": _now(),
            "owner": owner or secrets.token_hex(8),
            "machine": _machine(),
            "started": _started(os.getpid()),
            "token": secrets.token_hex(8),
        }
        self._over: threading.Event | None = None
        self._lost: dict[str, Any] | None = None

    def take(self) -> None:
        """Take it, and renew it from a thread until `leave`. Raises FinalError where another trainer holds it."""
        self._wait_until_free()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, args=(self._over,), name="hold", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises FinalError where another trainer has taken it over, as after this process slept for too long."""
        if self._lost is not None:
            raise FinalError(f"{_who(self._lost)} has taken over the stage in {self.path.parent}; this one stops.")

    def leave(self) -> None:
        """Give it up, where it is taken."""
        if self._over is None:
            return
        self._over.set()
        self._thread.join(self._renew_seconds)  # or it might write the file once more
        self._over = None
        if self._is_mine(self._read()):
            self.path.unlink(missing_ok=True)

    def _wait_until_free(self) -> None:
        asked = changed = time.monotonic()
        seen = there = self._read()
        while True:
            if there is None:
                if self._create():
                    return
            elif self._has_ended(there) or time.monotonic() - changed > self._lapse:
                self._write()
                time.sleep(SETTLE_SECONDS)  # of several that find it lapsed, the last one has it
                if self._is_mine(self._read()):
                    return
            elif seen != there:
                seen, changed = there, time.monotonic()
                if changed - asked > min(PATIENCE_SECONDS, self._lapse):
                    since = there.get("since")
                    raise FinalError(
                        f"{_who(there)} trains the stage in {self.path.parent} since {since}; wait for it, or end it."
                    )
            time.sleep(0.2)
            there = self._read()

    def _has_ended(self, there: dict[str, Any]) -> bool:
        """Whether what holds it is a start of our own owner's before this one, or gone from this machine."""
        if there.get("owner") == self._me["owner"]:
            return True
        here = self._me["machine"] is not None and there.get("machine") == self._me["machine"]
        return here and _started(int(there.get("pid", 0))) != there.get("started")

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(self._renew_seconds):
            try:
                there = self._read()
                if there is not None and not self._is_mine(there):
                    self._lost = there
                    return
                self._write()
            except OSError as error:  # the folder may be back before it lapses
                log.warning("%s was not renewed: %s", self.path, error)

    def _create(self) -> bool:
        """Write the file where there is none: of several that try, one does."""
        attempt = self._attempt()
        try:
            os.link(attempt, self.path)
        except FileExistsError:
            return False
        finally:
            attempt.unlink(missing_ok=True)
        return True

    def _write(self) -> None:
        self._attempt().replace(self.path)

    def _attempt(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        attempt = self.path.with_name(f"{FILE}.{self._me['token']}.writing")
        attempt.write_text(json.dumps(self._me | {"renewed": _now()}) + "\n")
        return attempt

    def _read(self) -> dict[str, Any] | None:
        """What the file says; nothing in particular where it is damaged, and None where there is none."""
        try:
            said = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
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
