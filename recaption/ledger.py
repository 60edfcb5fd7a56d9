"""Every answer that no commit holds yet, on disk as soon as it is there: what a kill does not lose.

One ledger serves all recaptionings of a dataset on a machine. It knows answers by what was asked, not by the run
that asked: a run that goes on under another step key (another base group, another choice of rows) finds them too.
"""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self

from pipelines.dataset import Dataset
from pipelines.disk import remove_folder
from pipelines.errors import HarmonError
from pipelines.workspace import ANSWERS, WORK
from recaption.engines import Answer, Answered
from recaption.work import Asking

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    round INTEGER, work TEXT, draw INTEGER, drawn TEXT, text TEXT, refusal TEXT, finish_reason TEXT, tokens_in INTEGER,
    tokens_out INTEGER, seconds REAL, attempts INTEGER, endpoint TEXT, detail TEXT, committed INTEGER DEFAULT 0,
    PRIMARY KEY (round, work, draw, drawn)
) WITHOUT ROWID
"""
_COLUMNS = "text, refusal, finish_reason, tokens_in, tokens_out, seconds, attempts, endpoint, detail"
_AT_ONCE = 500  # works of one query: SQLite's oldest limit of parameters is 999


class Ledger:
    """Answers by work, draw and how it was drawn, in an SQLite file that any processes of one machine share.

    A lot is there whole once `keep` has returned, and survives the death of the process. The last lots may be
    lost with the power, and are asked again then; the file stays sound (write-ahead log, synchronous=NORMAL).
    The first answer to a question stays. What a commit holds goes when the last process closes the ledger.
    """

    def __init__(self, folder: Path, asking: Asking, round: int = 0) -> None:
        """`asking`: later draws that it would draw otherwise are not seen; `round`: nor are answers of other rounds
        (see `Rows.ledger_round`).

        Refusals of earlier attempts are forgotten where no other process has the ledger open: they are asked again.

        Raises HarmonError: the file is damaged.
        """
        self._folder = folder
        self._asking = asking
        self._round = round
        self._path = folder / "answers.sqlite"
        self._lock: int
        self._database: sqlite3.Connection
        while not self._open(folder / "held" / "lock"):
            pass  # whoever closed it just now has removed it

    def _open(self, lock: Path) -> bool:
        """Hold the lock together with others and open the file; False where they are gone meanwhile."""
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            return False
        try:
            if not (alone := self._is_alone()):
                fcntl.flock(self._lock, fcntl.LOCK_SH)
            if not _stands(self._lock, lock):
                os.close(self._lock)
                return False
            with self._plainly():
                self._database = sqlite3.connect(
                    self._path, timeout=60.0, isolation_level=None, check_same_thread=False
                )
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=NORMAL")
                self._database.execute(_SCHEMA)
                if alone:
                    self._database.execute("DELETE FROM answers WHERE refusal IS NOT NULL OR committed")
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except BaseException:
            os.close(self._lock)
            raise
        if not _stands(self._lock, lock):
            self._database.close()
            os.close(self._lock)
            return False
        return True

    @staticmethod
    def folder(dataset: Dataset) -> Path:
        """Where the ledger of a dataset lies on this machine."""
        return dataset.store.work(f"{WORK}/{ANSWERS}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        empty = False
        with contextlib.suppress(sqlite3.DatabaseError):  # damaged: whoever reads it next is told
            if self._is_alone():
                self._database.execute("DELETE FROM answers WHERE committed")
                empty = self._database.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is None
        self._database.close()
        if empty:
            remove_folder(self._folder)
            with contextlib.suppress(OSError):  # not empty: other steps are at work
                self._folder.parent.rmdir()
        os.close(self._lock)

    def keep(self, answered: Answered) -> None:
        """Add a lot of answers, all or none."""
        rows = [
            (self._round, question.work, question.draw, self._drawn(question.work, question.draw), *astuple(answer))
            for question, answer in answered
        ]
        names = f"round, work, draw, drawn, {_COLUMNS}"
        with self._plainly(), self._whole():
            self._database.executemany(f"INSERT OR IGNORE INTO answers ({names}) VALUES ({', '.join('?' * 13)})", rows)

    def committed(self, works: Iterable[str]) -> None:
        """Say that a commit holds the answers of these works."""
        with self._plainly(), self._whole():
            self._database.executemany(
                "UPDATE answers SET committed = 1 WHERE round = ? AND work = ?", ((self._round, work) for work in works)
            )

    def answers(self, works: Iterable[str]) -> Iterator[tuple[str, list[Answer]]]:
        """Each of `works` that has answers, with the answers of its draws from 0 on."""
        wanted = list(works)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            found: dict[str, list[Answer]] = {}
            query = (
                f"SELECT work, draw, drawn, {_COLUMNS} FROM answers WHERE round = ? AND work IN "
                f"({', '.join('?' * len(some))}) ORDER BY work, draw"
            )
            with self._plainly():
                rows = self._database.execute(query, [self._round, *some]).fetchall()
            for work, draw, drawn, *fields in rows:
                if draw == len(found.setdefault(work, [])) and drawn == self._drawn(work, draw):
                    found[work].append(Answer(*fields))
            yield from ((work, answers) for work, answers in found.items() if answers)

    def _drawn(self, work: str, draw: int) -> str:
        return self._asking.drawn(work, draw) or ""

    def _is_alone(self) -> bool:
        """Whether no other process has the ledger open; if so, none opens it until the lock is given up."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """All that is written inside, or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.DatabaseError):  # what went wrong first is told
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as problem:
            raise HarmonError(
                f"The ledger of answers {self._path} cannot be used ({problem}); if its disk has room, delete the "
                "folder and rerun: what it held is asked again, and finished shards are kept."
            ) from None


def _stands(descriptor: int, path: Path) -> bool:
    """Whether this is the file that stands at the path, and not one that was removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
