"""WISE by a judge: a row for each drawn picture, and the score over them.

A picture whose judgement could not be read, or that the judge refused, is a row with a reason and no score: it never
counts as 0, and the overall score is not given without it unless a part is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.judges.judge import Judge, Question, readable
from harmon.evaluation.judges.wording import OWN, Wording
from harmon.evaluation.scorers.counts import WISE_PROMPTS
from harmon.evaluation.scorers.wise import (
    RETRIES,
    Judgement,
    Version,
    WiseScores,
    read_legacy,
    read_verified,
    score_legacy,
    score_verified,
)
from pipelines.errors import HarmonError

OFFICIAL_JUDGE: dict[Version, str] = {"legacy": "gpt-4o-2024-05-13", "verified": "Qwen3.5-35B-A3B"}
BENCHMARKS: dict[str, Version] = {"wise-legacy": "legacy", "wise-verified": "verified"}


@dataclass(frozen=True)
class WiseRow:
    """What the judge said of one picture."""

    key: str
    prompt: int
    version: Version
    judgement: Judgement | float | None
    """Three scores (legacy), 0 or 1 (verified), or None: then `reason` says why."""
    reason: str
    text: str
    judge: str
    answered_as: str
    """What the server called the model."""
    wording: str
    official_wording: bool
    sampling: dict[str, Any]

    @property
    def score(self) -> float | None:
        """From 0 to 1: the WiScore (legacy), or 0 or 1."""
        return self.judgement.wiscore if isinstance(self.judgement, Judgement) else self.judgement

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "score": self.score}


@dataclass(frozen=True)
class WiseReport:
    """The scores, who gave them, how many pictures have none, and why this is not the published measurement."""

    scores: WiseScores
    judge: str
    wording: str
    sampling: dict[str, Any]
    without: dict[str, int]
    """Pictures without a score, by reason."""
    differs: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "differs": list(self.differs), "scores": self.scores.report()}


def judge_wise(drawn: Iterable[Drawn], judge: Judge, wording: Wording | None = None) -> Iterator[WiseRow]:
    """A row for each picture of `wise-legacy` or `wise-verified`, in order; `wording` as our own where left out.

    Raises:
        HarmonError: the judge lets nobody in or answers nobody; what it answered is in its journal.
    """

    def one(picture: Drawn) -> WiseRow:
        version = BENCHMARKS[picture.prompt.benchmark]
        words = wording or OWN[version]
        question = Question(words.fill(picture.prompt.record), picture.read(), words.system)
        read: Callable[[str], Judgement | float | None] = read_legacy if version == "legacy" else read_verified
        found: Judgement | float | None
        found, reply = readable(judge, question, read, RETRIES)
        return WiseRow(
            key=picture.key,
            prompt=int(picture.prompt.id),
            version=version,
            judgement=found,
            reason="" if found is not None else reply.reason,
            text=reply.text if reply.text is not None else reply.detail,
            judge=judge.settings.model,
            answered_as=reply.model,
            wording=words.label,
            official_wording=words.official,
            sampling=judge.settings.sampling,
        )

    return judge.each(drawn, one)


def score_wise(rows: Sequence[WiseRow], *, partial: bool = False) -> WiseReport:
    """WISE over its rows, 1000 of them unless `partial`; then those without a score are left out and counted.

    Raises:
        HarmonError: rows of several judges, wordings or versions, or of one prompt twice; no row; or pictures without
            a score, and `partial` does not say so.
    """
    kinds = {(row.version, row.judge, row.wording, str(row.sampling)) for row in rows}
    if len(kinds) != 1:
        raise HarmonError(f"WISE: the pictures were judged in {len(kinds)} ways; judge all of them with one judge.")
    if len({row.prompt for row in rows}) != len(rows):
        raise HarmonError("WISE: a prompt was judged more than once; give one picture of each.")
    without = Counter(row.reason for row in rows if row.judgement is None)
    if without and not partial:
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(without.items()))
        raise HarmonError(
            f"WISE: {without.total()} of {len(rows)} pictures have no score ({told}), so none is given overall; run "
            "again to ask about them, or say that a part is meant (--limit)."
        )
    first = rows[0]
    if first.version == "legacy":
        three = {row.prompt: row.judgement for row in rows if isinstance(row.judgement, Judgement)}
        scores = score_legacy(three, partial=partial)
    else:
        scores = score_verified(
            {row.prompt: row.judgement for row in rows if isinstance(row.judgement, float)}, partial=partial
        )
    wording = None if first.official_wording else first.wording
    differs = [*differences(first.version, first.judge, wording, first.sampling)]
    if scores.n != WISE_PROMPTS:
        differs.append(f"{scores.n} pictures of {WISE_PROMPTS}")
    return WiseReport(scores, first.judge, first.wording, first.sampling, dict(without), tuple(differs))


def differences(version: Version, model: str, wording: str | None, sampling: Mapping[str, Any]) -> tuple[str, ...]:
    """What sets a judge apart from the official one; `wording` is the label of another prompt than the official."""
    differs = []
    if model != OFFICIAL_JUDGE[version]:
        differs.append(f"judge: {model}, officially {OFFICIAL_JUDGE[version]}")
    if wording is not None:
        differs.append(f"prompt: {wording}, not the official one")
    if sampling.get("temperature") != 0:
        differs.append(f"temperature: {sampling.get('temperature')}, officially 0")
    return tuple(differs)
