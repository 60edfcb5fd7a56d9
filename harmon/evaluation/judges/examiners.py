"""WISE's and DPG-Bench's judges as examiners of a run's pictures: the columns that `harmon evaluate` keeps of each.

A reason that may pass (the server was down, a deadline) is no column: it ends the examination, whose answers are in the
journal, so that the next run asks the rest. What stays as it is (an unreadable or refused answer) is a row that failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.judges.dpg import WORDING, JudgeVqa, MplugAnswers, Vqa
from harmon.evaluation.judges.judge import PASSING, Judge, JudgeSettings
from harmon.evaluation.judges.wise import differences, judge_wise
from harmon.evaluation.judges.wording import OWN, Wording
from harmon.evaluation.scorers.wise import Judgement, Version
from pipelines.errors import HarmonError
from pipelines.storage import file_sha256
from pipelines.workspace import Journal

Columns = list[Mapping[str, Any]]
LEGACY = ("consistency", "realism", "aesthetic_quality")


class WiseExaminer:
    """A judge of WISE's pictures."""

    def __init__(self, settings: JudgeSettings, version: Version, wording: Wording | None = None) -> None:
        self._settings, self._version, self._wording = settings, version, wording or OWN[version]

    @property
    def name(self) -> str:
        return f"{self._settings.model}, asked as {self._wording.label}"

    @property
    def configuration(self) -> Mapping[str, Any]:
        told = {"kind": "wise-judge", "model": self._settings.model, "wording": self._wording.sha256}
        return told | {"sampling": self._settings.sampling}

    @property
    def differs(self) -> Sequence[str]:
        words = None if self._wording.official else self._wording.label
        return differences(self._version, self._settings.model, words, self._settings.sampling)

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> Columns:
        """The three scores (legacy) or the one (verified) of each picture, and the judge's words."""
        with Judge(self._settings, journal) as judge:
            rows = list(judge_wise(pictures, judge, self._wording))
        _refuse_passing(self.name, (row.reason for row in rows))
        seen: Columns = []
        for row in rows:
            if self._version == "verified":
                columns: dict[str, Any] = {"score": row.judgement}
            else:
                three = row.judgement if isinstance(row.judgement, Judgement) else None
                columns = {name: getattr(three, name, None) for name in LEGACY}
            told = {"raw": row.text, "answered_as": row.answered_as or None}
            seen.append({**columns, **told, **_status(row.reason)})
        return seen


class DpgExaminer:
    """A model that answers DPG-Bench's questions, or the file of the answers that mPLUG gave."""

    def __init__(self, by: JudgeSettings | MplugAnswers) -> None:
        self._by = by

    @property
    def name(self) -> str:
        if isinstance(self._by, MplugAnswers):
            return f"mPLUG-large, as {self._by.path.name} says"
        return f"{self._by.model}, asked as {WORDING}, not mPLUG"

    @property
    def configuration(self) -> Mapping[str, Any]:
        if isinstance(self._by, MplugAnswers):
            return {"kind": "mplug-answers", "sha256": file_sha256(self._by.path)}
        told = {"kind": "dpg-judge", "model": self._by.model, "wording": WORDING}
        return told | {"sampling": self._by.sampling}

    @property
    def differs(self) -> Sequence[str]:
        if isinstance(self._by, MplugAnswers):
            return ()
        return (f"{self._by.model} answers the questions, officially mPLUG-large", f"it is asked as {WORDING}")

    def examine(self, pictures: Sequence[Drawn], journal: Journal) -> Columns:
        """The answers about each picture, in the order of its prompt's questions."""
        if isinstance(self._by, MplugAnswers):
            return self._answers(pictures, self._by)
        with Judge(self._by, journal) as judge:
            return self._answers(pictures, JudgeVqa(judge))

    def _answers(self, pictures: Sequence[Drawn], vqa: Vqa) -> Columns:
        rows = list(vqa.each(pictures))
        _refuse_passing(self.name, (reason for row in rows for reason in row.reasons.values()))
        seen: Columns = []
        for row in rows:
            why = ", ".join(f"question {number}: {reason}" for number, reason in row.reasons.items())
            seen.append({"answers": None if why else list(row.answers.values()), **_status(why)})
        return seen


def _status(reason: str) -> dict[str, str | None]:
    return {"status": "failed" if reason else "ok", "reason": reason or None}


def _refuse_passing(name: str, reasons: Iterable[str]) -> None:
    """Raise HarmonError where some questions went unanswered for reasons that may pass."""
    passing = Counter(reason for reason in reasons if reason in PASSING)
    if passing:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(passing.items()))
        raise HarmonError(
            f"{name} did not answer {passing.total()} questions ({told}); run again: the answers so far are kept."
        )
