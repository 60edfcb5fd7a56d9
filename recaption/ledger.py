"""Every answer of a run that is under way, on disk as soon as it is there: what a kill does not lose."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Self

from recaption.engines import GIVEN_UP, Answer, Answered

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    work TEXT, draw INTEGER, text TEXT, refusal TEXT, finish_reason TEXT, tokens_in INTEGER, tokens_out INTEGER,
    seconds REAL, attempts INTEGER, endpoint TEXT, PRIMARY KEY (work, draw)
) WITHOUT ROWID
"""
_COLUMNS = "draw, text, refusal, finish_reason, tokens_in, tokens_out, seconds, attempts, endpoint"
_AT_ONCE = 500  # works of one query: SQLite's oldest limit of parameters is 999


class Ledger:
    """Answers by work and draw, in an SQLite file that any number of processes of one machine share.

    A lot is there whole once `keep` has returned, and survives the death of the process. It may be lost with
    the power, and is asked again then. The first answer to a question stays.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=60.0, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()

    def forget_given_up(self) -> None:
        """Take out what the engine gave up in an earlier attempt: it is asked again."""
        marks = ", ".join("?" * len(GIVEN_UP))
        self._database.execute(f"DELETE FROM answers WHERE refusal IN ({marks})", sorted(GIVEN_UP))

    def keep(self, answered: Answered) -> None:
        """Add a lot of answers, all or none."""
        rows = [(question.work, question.draw, *astuple(answer)) for question, answer in answered]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(f"INSERT OR IGNORE INTO answers VALUES ({', '.join('?' * 10)})", rows)
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def answers(self, works: Iterable[str]) -> Iterator[tuple[str, list[Answer]]]:
        """Each of `works` that has answers, with the answers of its draws from 0 on."""
        wanted = list(works)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            found: dict[str, list[Answer]] = {}
            query = (
                f"SELECT work, {_COLUMNS} FROM answers WHERE work IN ({', '.join('?' * len(some))}) ORDER BY work, draw"
            )
            for work, draw, *fields in self._database.execute(query, some):
                if draw == len(found.setdefault(work, [])):
                    found[work].append(Answer(*fields))
            yield from found.items()
