"""WISE by a judge: a row for each drawn picture.

A picture whose judgement could not be read, or that the judge refused, is a row with a reason and no score: it never
counts as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harmon.evaluation.drawn import Drawn
from harmon.evaluation.judges.judge import Judge, Question, readable
from harmon.evaluation.judges.wording import OWN, Wording
from harmon.evaluation.scorers.wise import (
    RETRIES,
    Judgement,
    Version,
    read_legacy,
    read_verified,
)

OFFICIAL_JUDGE: dict[Version, str] = {"legacy": "gpt-4o-2024-05-13", "verified": "Qwen3.5-35B-A3B"}
BENCHMARKS: dict[str, Version] = {"wise-legacy": "legacy", "wise-verified": "verified"}


@dataclass(frozen=True)
class WiseRow:
    """What the judge said of one picture."""

    key: str
    prompt: int
    judgement: Judgement | float | None
    """Three scores (legacy), 0 or 1 (verified), or None: then `reason` says why."""
    reason: str
    text: str
    answered_as: str
    """What the server called the model."""


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
            judgement=found,
            reason="" if found is not None else reply.reason,
            text=reply.text if reply.text is not None else reply.detail,
            answered_as=reply.model,
        )

    return judge.each(drawn, one)


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
