"""Looks at a training's checkpoints in a process of their own, so that whoever follows the training waits for none.

A process, and not a thread: drawing pictures would hold the interpreter from the thread that renews a lease, and the
random numbers of a training in this process are not to be drawn from.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from pipelines.children import spawn, stop

CHECKOUT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


class Looks:
    """One look at a time, each a run of `command`; `what` names in warnings what is looked at.

    A look that fails is a warning: a training on many GPUs must not end for want of a picture.
    """

    def __init__(self, command: Sequence[str], what: str) -> None:
        self._command, self._what = list(command), what
        self._asked = self._over = False
        self._woken, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)  # the children end with it
        self._thread.start()

    def ask(self) -> None:
        """Look once more, now or after the look that is under way; being asked again meanwhile adds none."""
        self._asked = True
        self._woken.set()

    def end(self, at_once: bool = False) -> None:
        """Return when what was asked is done; `at_once`: break off the look that is under way, and begin no other."""
        if at_once:
            self._stopped.set()
        self._over = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.wait()
            self._woken.clear()
            if self._asked:
                self._asked = False
                self._look()
            if self._over and not self._asked:
                return

    def _look(self) -> None:
        if why := look_once(self._command, self._stopped):
            log.warning("no samples of %s: %s", self._what, why)


def look_once(command: Sequence[str], stopped: threading.Event | None = None) -> str | None:
    """Run the `command` of one look to its end, or until `stopped`; why it could not be done, None where it was."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    stopped = stopped or threading.Event()
    with TemporaryFile() as said:
        try:
            child = spawn(command, env=os.environ | {"PYTHONPATH": path}, output=said)
        except OSError as error:
            return str(error)
        try:
            while child.poll() is None:
                if stopped.wait(POLL_SECONDS):
                    return None
        finally:
            if child.poll() is None:  # also where whoever waits is interrupted
                stop(child)
        if not child.returncode:
            return None
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
        return words[-1] if words else f"it ended with {child.returncode}"
