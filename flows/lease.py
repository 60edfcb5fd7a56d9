"""A lease on something that runs on another machine: who follows it renews the lease, and it stops when that lapses.

The lease is a file in a folder that both see. Clocks of two machines are never compared: the holder measures by its
own clock how long the file has stayed as it was.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RENEWALS = 6  # in the time after which a lease lapses, so that a few may fail
log = logging.getLogger(__name__)


class Lease:
    """The lease in the file `path`, which lapses after `seconds` without a renewal.

    Any number of processes may renew it, and any of them may end it for good.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._ended = path.with_name(f"{path.name}.ended")

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it while the block runs, in a thread of its own: whatever the block waits for, the lease holds until
        this process is gone.
        """
        over = threading.Event()
        self._renew(0)

        def renew() -> None:
            count = 0
            while not over.wait(self.seconds / RENEWALS):
                count += 1
                try:
                    self._renew(count)
                except OSError as error:  # the folder may be back before the lease lapses
                    log.warning("the lease %s was not renewed: %s", self.path, error)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(self) -> None:
        """End it for good: its holder stops at its next look, whoever goes on renewing it."""
        self._ended.parent.mkdir(parents=True, exist_ok=True)
        self._ended.touch()

    def forget(self) -> None:
        """Remove its files, once its holder is gone."""
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink(missing_ok=True)

    def held(self, lapsed: Callable[[str], None]) -> None:
        """Look at it from a thread of its own, and call `lapsed` once, with the reason, when it has ended or lapsed."""

        def look() -> None:
            last, since = self._stands(), time.monotonic()
            while not self._ended.exists():
                time.sleep(min(1.0, self.seconds / RENEWALS))
                now = self._stands()
                if now is not None and now != last:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since > self.seconds:
                    lapsed(f"was not renewed for {self.seconds:g} s")
                    return
            lapsed("was ended")

        threading.Thread(target=look, name="lease", daemon=True).start()

    def _renew(self, count: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        owner = f"{socket.gethostname()} {os.getpid()}"
        attempt = self.path.with_name(f"{self.path.name}.{owner.replace(' ', '-')}.writing")
        attempt.write_text(f"{owner} {count} {time.time()}\n")
        attempt.replace(self.path)

    def _stands(self) -> str | None:
        """What the file says; None where it cannot be read now."""
        try:
            return self.path.read_text()
        except OSError:
            return None
