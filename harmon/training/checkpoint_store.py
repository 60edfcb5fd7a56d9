"""Checkpoints in a store that renames nothing, such as S3: one whose state.json stands is complete.

STORE/000500/shards/*.safetensors, model.safetensors, ..., state.json last
"""

import re
import shutil
from pathlib import Path

from pipelines.errors import HarmonError
from pipelines.storage import open_store

LAST = "state.json"


class CheckpointStore:
    """The checkpoints below s3://bucket/prefix or a folder.

    A killed attempt's files have no state.json beside them: nobody reads them, and the next attempt at the same step
    clears them away.
    """

    def __init__(self, root: str) -> None:
        self._files = open_store(root)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [step for step, names in self._found().items() if LAST in names]

    def where(self, step: int) -> str:
        """The full name of a checkpoint, for messages."""
        return self._files.where(f"{step:06d}")

    def read(self, step: int, name: str) -> bytes:
        """A small file of a checkpoint. Raises HarmonError where it is absent."""
        return self._files.read(f"{step:06d}/{name}")

    def send(self, step: int, name: str, source: Path) -> None:
        """Store a local file as `name` of a checkpoint."""
        self._files.put(f"{step:06d}/{name}", source)

    def fetch(self, step: int, folder: str, to: Path) -> None:
        """Copy the files below `folder` of a complete checkpoint to `to`, under their own names."""
        for path in self._files.list(f"{step:06d}/{folder}"):
            target = to / path.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._files.open(path) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 8 << 20)
        if not to.is_dir():
            raise HarmonError(
                f"The checkpoint {self.where(step)} has no {folder}; delete it to go on from the one before."
            )

    def clear(self, step: int) -> None:
        """Take away what an attempt at `step` that never ended has left; a complete checkpoint is made invisible
        first.
        """
        names = self._found().get(step, [])
        for name in sorted(names, key=lambda name: name != LAST):
            self._files.remove(f"{step:06d}/{name}")

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` complete checkpoints, and older attempts that never ended."""
        kept = self.steps()[-keep:]
        for step in self._found():
            if kept and step < kept[0]:
                self.clear(step)

    def _found(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for path in self._files.list():
            step, _, name = path.partition("/")
            if re.fullmatch(r"\d{6,}", step):
                found.setdefault(int(step), []).append(name)
        return dict(sorted(found.items()))
