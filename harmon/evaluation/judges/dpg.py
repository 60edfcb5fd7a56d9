"""DPG-Bench by a model that answers questions about pictures: a row for each drawn picture.

Officially mPLUG-large answers, and its answers are read from the file that the official script writes. Any other model
stands behind `Vqa`; one behind an OpenAI-compatible API is here (`JudgeVqa`). Its score is labelled as not official. An
answer that is neither yes nor no is a reason, never a silent no.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.judges.judge import Judge, Question, readable
from harmon.evaluation.question import Prompt
from pipelines.errors import ConfigurationError, HarmonError

WORDING = "harmon-dpg-yes-no-v1"
TURNS = 3  # asked, until an answer can be read
MOST_LINE = 1 << 16
_DETAIL = re.compile(r"(?P<image>.+), \((?P<x>\d+), (?P<y>\d+), (?P<x1>\d+), (?P<y1>\d+)\), (?P<rest>.+)")
_WORD = re.compile(r"[a-z]+")


class Vqa(Protocol):
    """Answers yes-no questions about a picture."""

    def answer(self, picture: Drawn, number: int, question: str) -> tuple[str | None, str]:
        """The answer to question `number` of its prompt: any word officially, of which "yes" counts; "yes" or "no" of
        others. Or None with the reason."""
        ...

    def each(self, drawn: Iterable[Drawn]) -> Iterator[DpgRow]:
        """`answered` of every picture, in order."""
        ...


@dataclass(frozen=True)
class DpgRow:
    """The answers about one picture, by question in the table's order, None where there is none; then `reasons` has
    why."""

    key: str
    prompt: str
    number: int
    answers: dict[int, str | None]
    reasons: dict[int, str]


class JudgeVqa:
    """A model behind an OpenAI-compatible API."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def answer(self, picture: Drawn, number: int, question: str) -> tuple[str | None, str]:
        asked = Question(f"{question}\nLook at the picture and answer with one word: yes or no.", picture.read())
        found, reply = readable(self._judge, asked, yes_or_no, TURNS)
        return found, "" if found is not None else reply.reason

    def each(self, drawn: Iterable[Drawn]) -> Iterator[DpgRow]:
        """Several pictures at a time, their questions one after another."""
        return self._judge.each(drawn, lambda picture: answered(picture, self))


class MplugAnswers:
    """The official answers, by the file that `compute_dpg_bench.py` writes beside its results (`…_detail.txt`).

    A line is `path, (x0, y0, x1, y1), question, answer`, where the four pictures of a prompt are tiles of one. The
    script skips the first row of its table, so the first question of the first prompt has no answer there: put that row
    into its table twice before it runs.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError where there is no such file, HarmonError for a line that is not as described."""
        if not path.is_file():
            raise ConfigurationError(f"There is no {path} with mPLUG's answers; name the …_detail.txt of the script.")
        self.path = path
        self._answers: dict[tuple[str, int, str], str] = {}
        with path.open(encoding="utf-8", errors="replace") as lines:
            number = 0
            while line := lines.readline(MOST_LINE):
                number += 1
                if line.strip():
                    self._take(f"{path}, line {number}", line.rstrip("\r\n"))

    def answer(self, picture: Drawn, number: int, question: str) -> tuple[str | None, str]:
        found = self._answers.get((picture.prompt.id, picture.number, question.strip()))
        return found, "" if found is not None else "not_in_the_file"

    def each(self, drawn: Iterable[Drawn]) -> Iterator[DpgRow]:
        return (answered(picture, self) for picture in drawn)

    def _take(self, where: str, line: str) -> None:
        parts = _DETAIL.fullmatch(line)
        question, _, answer = parts["rest"].rpartition(", ") if parts else ("", "", "")
        if parts is None or not question:
            raise HarmonError(f"{where} is not `path, (x0, y0, x1, y1), question, answer`; it is another file.")
        side = int(parts["x1"]) - int(parts["x"])
        if side < 1 or int(parts["x"]) % side or int(parts["y"]) % side:
            raise HarmonError(f"{where} has a tile that is none of a grid; it is another file.")
        number = int(parts["y"]) // side * 2 + int(parts["x"]) // side
        key = (Path(parts["image"]).name.split(".")[0], number, question.strip())
        if self._answers.setdefault(key, answer.strip()) != answer.strip():
            raise HarmonError(f"{where} answers {question[:60]!r} otherwise than an earlier line; keep one run a file.")


def answered(picture: Drawn, vqa: Vqa) -> DpgRow:
    """All questions about one picture."""
    questions = _questions(picture.prompt)
    answers: dict[int, str | None] = {}
    reasons: dict[int, str] = {}
    for number, one in questions.items():
        answers[number], reason = vqa.answer(picture, number, one["question"])
        if answers[number] is None:
            reasons[number] = reason
    return DpgRow(picture.key, picture.prompt.id, picture.number, answers, reasons)


def yes_or_no(text: str) -> str | None:
    """The first word of a reply where that is yes or no, in any case and behind any mark; None otherwise."""
    word = _WORD.search(text.lower())
    return word[0] if word and word[0] in ("yes", "no") else None


def _questions(prompt: Prompt) -> dict[int, Mapping[str, Any]]:
    """By their numbers, in the table's order."""
    return {one["id"]: one for one in prompt.record["questions"]}
