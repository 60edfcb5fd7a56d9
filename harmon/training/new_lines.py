"""Lines of metrics as a training writes them, for whoever follows it from another process or machine."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from harmon.training.checkpoint_store import CheckpointStore
from harmon.training.job import METRICS, parsed_lines
from pipelines.errors import HarmonError

STORE_SECONDS = 30.0  # from one look into a store to the next
log = logging.getLogger(__name__)


class NewLines:
    """The lines that are new since they were last asked for, each once.

    They come from the stage's `folder`. Where its checkpoints lie in a `store` they come from there too, with each
    checkpoint: workers that do not share the folder write their lines on a machine of their own.
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self._file, self._store = folder / METRICS, None if store is None else CheckpointStore(store)
        self._inode = self._read = 0  # of the file that was read last, and how many of its bytes
        self._last = max((line["step"] for line in self._written()), default=0)
        self._last = max(self._last, self._newest())
        self._looked = time.monotonic()

    def ask(self, ended: bool = False) -> list[dict[str, Any]]:
        """The lines since the last call. `ended`: the training writes no more, so the store is looked into now."""
        found = self._written()
        if ended or time.monotonic() - self._looked > STORE_SECONDS:
            found += self._stored(beyond=max([self._last, *(line["step"] for line in found)]))
            self._looked = time.monotonic()
        new = [line for line in found if line["step"] > self._last]
        if new:
            self._last = new[-1]["step"]
        return new

    def _written(self) -> list[dict[str, Any]]:
        """The lines that were added to the folder's file since this was last called; all of one that took its place,
        as where training has gone back to a checkpoint.
        """
        try:
            with self._file.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._read:
                    self._inode, self._read = stat.st_ino, 0
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")  # a line that is being written comes the next time
        except FileNotFoundError:
            return []
        self._read += len(whole + end)
        return parsed_lines(whole.decode())

    def _stored(self, beyond: int) -> list[dict[str, Any]]:
        """The lines beyond a step that the newest checkpoint in the store carries."""
        newest = self._newest()
        if self._store is None or newest <= beyond:
            return []
        try:
            said = self._store.read(newest, METRICS).decode()
        except HarmonError as error:  # gone meanwhile, or of a time when checkpoints carried none
            log.warning("no lines of metrics from the store: %s", error)
            return []
        return [line for line in parsed_lines(said) if line["step"] > beyond]

    def _newest(self) -> int:
        """The step of the newest checkpoint in the store; 0 where there is none, or it does not answer."""
        try:
            return max(self._store.steps(), default=0) if self._store else 0
        except HarmonError as error:
            log.warning("the store of checkpoints does not answer: %s", error)
            return 0
