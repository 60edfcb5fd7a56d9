"""DPG-Bench by a model that answers questions about pictures: a row for each drawn picture, and the score over them.

Officially mPLUG-large answers, and its answers are read from the file that the official script writes. Any other model
stands behind `Vqa`; one behind an OpenAI-compatible API is here (`JudgeVqa`). Its score is labelled as not official. An
answer that is neither yes nor no is a reason, never a silent no.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.judges.judge import Judge, Question, readable
from harmon.evaluation.question import Prompt
from harmon.evaluation.scorers.dpg import Answers, DpgScores, score, score_prompt
from pipelines.errors import ConfigurationError, HarmonError

WORDING = "harmon-dpg-yes-no-v1"
TURNS = 3  # asked, until an answer can be read
MOST_LINE = 1 << 16
_DETAIL = re.compile(r"(?P<image>.+), \((?P<x>\d+), (?P<y>\d+), (?P<x1>\d+), (?P<y1>\d+)\), (?P<rest>.+)")
_WORD = re.compile(r"[a-z]+")


class Vqa(Protocol):
    """Answers yes-no questions about a picture."""

    @property
    def report(self) -> dict[str, Any]:
        """Its name and how it is asked: what every row records."""
        ...

    @property
    def official(self) -> bool:
        """Whether it is mPLUG-large as the official script asks it."""
        ...

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
    score: float | None
    """From 0 to 1, parents included; None where an answer is missing."""
    vqa: dict[str, Any]
    official: bool

    def report(self) -> dict[str, Any]:
        """As JSON: keys are texts there."""
        told = asdict(self)
        return told | {"answers": _texts(self.answers), "reasons": _texts(self.reasons)}


@dataclass(frozen=True)
class DpgReport:
    """The scores, who answered, what was not answered, and why this is not the published measurement."""

    name: str
    scores: DpgScores
    vqa: dict[str, Any]
    without: dict[str, int]
    """Questions without an answer, by reason."""
    prompts_left_out: int
    differs: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "differs": list(self.differs), "scores": self.scores.report()}


class JudgeVqa:
    """A model behind an OpenAI-compatible API."""

    official = False

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def report(self) -> dict[str, Any]:
        return {"vqa": f"{self._judge.settings.model}, not mPLUG", "prompt": WORDING, **self._judge.report}

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

    official = True

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

    @property
    def report(self) -> dict[str, Any]:
        return {"vqa": "mPLUG-large, by the official script", "prompt": "the question alone"}

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
    given = [answer for answer in answers.values() if answer is not None]
    whole = len(given) == len(questions)
    return DpgRow(
        key=picture.key,
        prompt=picture.prompt.id,
        number=picture.number,
        answers=answers,
        reasons=reasons,
        score=score_prompt(_dependency(questions), [given]).score if whole else None,
        vqa=vqa.report,
        official=vqa.official,
    )


def score_dpg(rows: Sequence[DpgRow], prompts: Sequence[Prompt], *, partial: bool = False) -> DpgReport:
    """DPG-Bench over its rows: 1065 prompts of four pictures unless `partial`; then prompts with an unanswered question
    are left out and counted.

    Raises:
        HarmonError: rows of several models, or of a picture twice; a prompt that is not among `prompts`; or questions
            without an answer, and `partial` does not say so.
    """
    if len({str(row.vqa) for row in rows}) != 1:
        raise HarmonError("DPG-Bench: no picture or several models answered; let one model answer about all of them.")
    if len({(row.prompt, row.number) for row in rows}) != len(rows):
        raise HarmonError("DPG-Bench: a picture is told twice; give one row for each.")
    without = Counter(reason for row in rows for reason in row.reasons.values())
    if without and not partial:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(without.items()))
        raise HarmonError(
            f"DPG-Bench: {without.total()} questions have no answer ({told}), so no score is given; run again to ask "
            "them, or say that a part is meant (--limit)."
        )
    known = {prompt.id: prompt for prompt in prompts}
    of_prompt = defaultdict[str, list[DpgRow]](list)
    for row in rows:
        if row.prompt not in known:
            raise HarmonError(f"DPG-Bench: there is no prompt {row.prompt!r} in this run.")
        of_prompt[row.prompt].append(row)
    whole = {item: some for item, some in of_prompt.items() if not any(row.reasons for row in some)}
    scores = score([_answers(known[item], some) for item, some in whole.items()], partial=partial)
    first = rows[0]
    differs = [] if first.official else [f"answers: {first.vqa['vqa']}", f"prompt: {first.vqa.get('prompt')}"]
    if partial:
        differs.append(f"{scores.prompts} prompts of 1065")
    name = "DPG-Bench" if first.official else "DPG-Bench (another judge)"
    return DpgReport(name, scores, first.vqa, dict(without), len(of_prompt) - len(whole), tuple(differs))


def yes_or_no(text: str) -> str | None:
    """The first word of a reply where that is yes or no, in any case and behind any mark; None otherwise."""
    word = _WORD.search(text.lower())
    return word[0] if word and word[0] in ("yes", "no") else None


def _answers(prompt: Prompt, rows: Sequence[DpgRow]) -> Answers:
    questions = _questions(prompt)
    pictures = [
        [answer for answer in row.answers.values() if answer is not None]
        for row in sorted(rows, key=lambda row: row.number)
    ]
    categories = {number: one["tuple"].split("(")[0].strip() for number, one in questions.items()}
    return Answers(prompt.id, _dependency(questions), pictures, categories)


def _questions(prompt: Prompt) -> dict[int, Mapping[str, Any]]:
    """By their numbers, in the table's order."""
    return {one["id"]: one for one in prompt.record["questions"]}


def _dependency(questions: Mapping[int, Mapping[str, Any]]) -> dict[int, Sequence[int]]:
    return {number: one["dependency"] for number, one in questions.items()}


def _texts(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(number): value for number, value in values.items()}
