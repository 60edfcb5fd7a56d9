"""Checkpoints in a store that renames nothing, such as S3: one whose state.json stands is complete.

STORE/000500/shards/*.safetensors, model.safetensors, ..., state.json last
STORE/done.json                    what a finished stage says of itself, as in its folder
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from harmon.training.failure import FinalError
from pipelines.storage import Store, open_store

LAST, SHARDS, RECORD = "state.json", "shards", "done.json"


class CheckpointStore:
    """The checkpoints below s3://bucket/prefix or a folder.

    A killed attempt's files have no state.json beside them: nobody reads them, and the next attempt at the same step
    clears them away.
    """

    def __init__(self, root: str) -> None:
        self.files: Store = open_store(root)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [step for step, names in self._found().items() if LAST in names]

    def where(self, step: int) -> str:
        """The full name of a checkpoint, for messages."""
        return self.files.where(f"{step:06d}")

    def read(self, step: int, name: str) -> bytes:
        """A small file of a checkpoint. Raises HarmonError where it is absent."""
        return self.files.read(f"{step:06d}/{name}")

    def send(self, step: int, name: str, source: Path) -> None:
        """Store a local file as `name` of a checkpoint."""
        self.files.put(f"{step:06d}/{name}", source)

    def shards(self, step: int) -> list[str]:
        """Paths of a checkpoint's shards. Raises FinalError where it has none."""
        found = [path for path in self.files.list(f"{step:06d}/{SHARDS}") if path.endswith(".safetensors")]
        if not found:
            raise FinalError(
                f"The checkpoint {self.where(step)} has no {SHARDS}; delete it to go on from the one before, or keep "
                "runs on a disk that all machines share."
            )
        return found

    def fetch(self, step: int, to: Path) -> None:
        """Copy what readers want of a complete checkpoint to the folder `to`: everything but its shards."""
        for name in self._found()[step]:
            if "/" not in name:
                with self.files.open(f"{step:06d}/{name}") as source, (to / name).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 8 << 20)

    def fetch_first(self, step: int, names: Sequence[str], to: Path) -> bool:
        """Copy the first of `names` that a complete checkpoint has to the file `to`; False where the checkpoint is gone
        before it is copied.
        """
        there = self._found().get(step, [])
        name = next((name for name in names if name in there), None)
        if LAST not in there or name is None:
            return False
        with self.files.open(f"{step:06d}/{name}") as source, to.open("wb") as sink:
            shutil.copyfileobj(source, sink, 8 << 20)
        return LAST in self._found().get(step, [])

    def record(self) -> bytes | None:
        """What the stage says of itself; None until it has finished."""
        return self.files.read(RECORD) if self.files.exists(RECORD) else None

    def set_record(self, data: bytes) -> None:
        """Say that the stage has finished."""
        self.files.remove(RECORD)
        self.files.put(RECORD, data)

    def clear(self, step: int) -> None:
        """Take away what an attempt at `step` that never ended has left; a complete checkpoint is made invisible
        first.
        """
        names = self._found().get(step, [])
        for name in sorted(names, key=lambda name: name != LAST):
            self.files.remove(f"{step:06d}/{name}")

    def drop_uploads(self) -> None:
        """Give up large uploads that killed attempts have begun: they are no files, and S3 has them paid for."""
        for upload in self.files.uploads():
            self.files.drop_upload(upload)

    def erase(self) -> None:
        """Take away everything, so that the stage begins anew."""
        self.drop_uploads()
        self.files.remove(RECORD)
        for step in sorted(self._found(), reverse=True):
            self.clear(step)

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` complete checkpoints, and older attempts that never ended."""
        kept = self.steps()[-keep:]
        for step in self._found():
            if kept and step < kept[0]:
                self.clear(step)

    def _found(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for path in self.files.list():
            step, _, name = path.partition("/")
            if re.fullmatch(r"\d{6,}", step):
                found.setdefault(int(step), []).append(name)
        return dict(sorted(found.items()))
