"""Running a step: shard by shard, resumable after any kill, committed once."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.dataset import Dataset
from pipelines.disk import remove_folder
from pipelines.drafts import draft_commit
from pipelines.errors import HarmonError
from pipelines.identity import Reads, Step
from pipelines.log_facts import set_shard
from pipelines.manifest import Commit, Receipt, manifest_path, receipt_path, step_path, written_by
from pipelines.outputs import ShardOutput
from pipelines.storage import OtherBytes
from pipelines.tombstones import standing
from pipelines.workspace import WORK, Journal, Workspace

__all__ = ["Journal", "Progress", "ProgressCallback", "Reads", "ShardOutput", "Step", "StepRun"]

LIST_EVERY = 10.0  # seconds between two looks for what other processes have finished
READERS = 16  # receipts read at a time: in S3 each takes tens of milliseconds, most of it waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a step is, from the receipts that stand."""

    step: str
    dataset: str
    shards_done: int
    shards_total: int
    rows_done: int


ProgressCallback = Callable[[Progress], None]


class StepRun:
    """One step applied to the dataset that it writes; any number of processes may run the same one.

    A shard is held by one process at a time (see Workspace). A rerun after a kill does the shards without a
    receipt, verifies and adopts the complete files it finds, and ends in the same content hash.
    """

    def __init__(self, dataset: Dataset, step: Step, on_progress: ProgressCallback | None = None) -> None:
        self.dataset = dataset
        self.step = step
        self._on_progress = on_progress
        self._asked: tuple[int, ...] = ()
        self._named = False
        self._rows_of: dict[int, int] = {}
        self._rows_done = 0
        self._counting = threading.Lock()
        self._listed = -LIST_EVERY
        self._began = datetime.now(UTC)

    @property
    def committed(self) -> Commit | None:
        """The commit of this step's key, or one that only forgetting sets apart, if every shard of it stands: then
        there is nothing to do.

        A repair that set a damaged file aside took the shard's receipt too; running the step again writes it.
        """
        commit = standing(self.dataset, self.step)
        return None if commit is None or self._missing(commit) else commit

    def _missing(self, commit: Commit) -> list[int]:
        """Shards of this step's commit that have no receipt now and files that still stand in the newest commit.

        A commit of another key, which only forgetting sets apart, misses none: no rerun could write them again.
        """
        if commit.step_key != self.step.key:
            return []
        head = self.dataset.head
        own = set(written_by(commit)).intersection(head.files if head else ())
        return sorted({entry.shard for entry in own} - set(self.finished()))

    def finished(self) -> list[int]:
        """Shards with a receipt, ascending."""
        names = (Path(path).name for path in self.dataset.store.list(f"steps/{self.step.key}"))
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d{5,}\.json", name))

    def pending(self, shards: Sequence[int]) -> list[int]:
        """Those of `shards` without a receipt. The step is complete when none of them is left."""
        self._asked = tuple(shards)
        done = set(self.finished())
        return [shard for shard in shards if shard not in done]

    def progress(self) -> Progress:
        """Where the step stands, work of other processes included."""
        self._listed = time.monotonic()
        return self._progress(self.finished())

    def _progress(self, shards: Sequence[int]) -> Progress:
        """Where it stands, when besides what is known `shards` have receipts."""
        with self._counting, ThreadPoolExecutor(READERS) as pool:
            new = [shard for shard in shards if shard not in self._rows_of]
            for shard, receipt in zip(new, pool.map(self._receipt, new), strict=True):
                self._rows_of[shard] = receipt.rows_in
                self._rows_done += receipt.rows_in
        done = len(self._rows_of)
        return Progress(self.step.name, self.dataset.name, done, len(self._asked) or done, self._rows_done)

    # Work on a shard

    def journal(self, shard: int) -> Journal:
        """Journal of rows finished inside a long shard: outlives a kill, goes when the receipt stands."""
        return self._workspace(shard).journal()

    def shard(self, number: int) -> ShardOutput:
        """Where this shard's results go. Waits while another process holds the shard."""
        folder = self._workspace(number).fresh("out")
        set_shard(number)
        return ShardOutput(self.dataset, self.step.name, self.step.key, number, folder, self._shard_done)

    @contextlib.contextmanager
    def together(self) -> Iterator[Path]:
        """Local folder for temporaries of many shards: empty at first, gone afterwards, one process's at a time."""
        work = self._held("together")
        try:
            yield work.fresh("scratch")
        finally:
            work.discard()

    def _workspace(self, shard: int) -> Workspace:
        return self._held(f"{shard:05d}")

    def _held(self, name: str) -> Workspace:
        work = Workspace(self.dataset.store.work(f"{WORK}/{self.step.key}/{name}"))
        work.acquire()
        if not self._named:
            self.dataset.store.put(step_path(self.step.key), self.step.identity)
            self._named = True
        return work

    def _shard_done(self, shard: int) -> None:
        self._workspace(shard).discard()
        set_shard(None)
        if self._on_progress:  # a listing of all receipts for each of them would be most of the work
            is_due = time.monotonic() - self._listed > LIST_EVERY
            self._on_progress(self.progress() if is_due else self._progress([shard]))

    # Commit

    def commit(self, terms: Mapping[str, Any] | None = None, notes: Mapping[str, Any] | None = None) -> Commit:
        """Gather the receipts of this key into the next manifest.

        `notes` join the commit's context, which no hash includes.
        `terms` states licence and terms by source name; those of the datasets read, and of the commits
        before, are carried along. Another process may commit first: then this commit goes on top of that one,
        unless both wrote the same group of a shard, which is an error. If a commit of this key stands, it is
        returned.
        """
        with ThreadPoolExecutor(READERS) as pool:
            receipts = list(pool.map(self._receipt, self.finished()))
        while True:
            head = self.dataset.newest()  # looked up before `committed`, so a head without our key is without our files
            if (commit := standing(self.dataset, self.step)) is not None:
                if missing := self._missing(commit):
                    raise HarmonError(
                        f"step {self.step.name} of {self.dataset.root} is under repair and {len(missing)} shards have "
                        f"no receipt yet (first {missing[0]}); run it again to finish them"
                    )
                break
            draft = draft_commit(self.dataset, self.step, head, receipts, self._asked, terms or {}, self._began, notes)
            try:
                self.dataset.store.put(manifest_path(draft.number), draft.to_bytes())
            except OtherBytes:
                log.info("%s: another commit took number %d; trying the next", self.dataset.name, draft.number)
        self.clean()
        return commit

    def _receipt(self, shard: int) -> Receipt:
        path = receipt_path(self.step.key, shard)
        return Receipt.from_bytes(self.dataset.store.read(path), self.dataset.store.where(path))

    def clean(self) -> None:
        """Delete the temporaries of this step, which a process killed right after its commit leaves behind."""
        remove_folder(self.dataset.store.work(f"{WORK}/{self.step.key}"))
        with contextlib.suppress(OSError):  # not empty: other steps are at work; gone: another process was faster
            self.dataset.store.work(WORK).rmdir()
