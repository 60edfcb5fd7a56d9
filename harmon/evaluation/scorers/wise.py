"""WISE: pictures that need world knowledge, read by a judge. Two benchmarks of this name, never to be mixed.

legacy (the paper's; GPT-4o judges): three scores of 0 to 2 a picture, joined to a WiScore of 0 to 1. verified
(2026-04; another judge, 200 other prompts, other ranges of ids): one score, 0 or 1. A number means nothing without
the judge's name beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from harmon.evaluation.scorers.counts import WISE_PROMPTS, require
from pipelines.errors import HarmonError

Version = Literal["legacy", "verified"]
RETRIES = 3  # judge calls before a picture is given up, in both official scripts


@dataclass(frozen=True)
class Category:
    """Prompt ids `first` to `last`, and what their mean weighs in the overall score."""

    first: int
    last: int
    weight: float


CATEGORIES: dict[Version, dict[str, Category]] = {
    "legacy": {
        "CULTURE": Category(1, 400, 0.4),
        "TIME": Category(401, 567, 0.167),
        "SPACE": Category(568, 700, 0.133),
        "BIOLOGY": Category(701, 800, 0.1),
        "PHYSICS": Category(801, 900, 0.1),
        "CHEMISTRY": Category(901, 1000, 0.1),
    },
    "verified": {
        "CULTURE": Category(1, 400, 0.4),
        "TIME": Category(401, 520, 0.12),
        "SPACE": Category(521, 640, 0.12),
        "BIOLOGY": Category(641, 760, 0.12),
        "PHYSICS": Category(761, 880, 0.12),
        "CHEMISTRY": Category(881, 1000, 0.12),
    },
}

_SCORES = ("consistency", "realism", "aesthetic_quality")
_NAMED = re.compile(r"(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\s*(\d)", re.IGNORECASE)
_BARE = re.compile(r"^\s*([0-2])\s*$", re.MULTILINE)
_NAMED_BINARY = re.compile(r"Score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)
_BARE_BINARY = re.compile(r"^\s*([01])\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Judgement:
    """The three scores of a picture, each meant to be 0 to 2."""

    consistency: float
    realism: float
    aesthetic_quality: float

    @property
    def wiscore(self) -> float:
        """From 0 to 1; WISE_legacy `Calculate.py::calculate_wiscore`."""
        return (0.7 * self.consistency + 0.2 * self.realism + 0.1 * self.aesthetic_quality) / 2


@dataclass(frozen=True)
class WiseScores:
    """Means by category, from 0 to 1, how many pictures each has, and the weighted mean; that is None where a
    category has no picture."""

    version: Version
    n: int
    categories: dict[str, float]
    counts: dict[str, int]
    overall: float | None

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def named_scores(text: str) -> dict[str, float]:
    """The scores that a judge's `text` names, by name; three bare lines of 0 to 2 where it names none.

    A colon within bold ("**Realism:** 2") or after "(0-2)" is not understood, of a score named twice the last counts,
    "1.5" is 1, and a digit above 2 is taken as it is.

    WISE_legacy `gpt_eval.py::extract_scores`.
    """
    found = {name.lower().replace(" ", "_"): float(digit) for name, digit in _NAMED.findall(text)}
    if found:
        return found
    bare = _BARE.findall(text)
    return dict(zip(_SCORES, map(float, bare))) if len(bare) >= len(_SCORES) else {}


def read_legacy(text: str) -> Judgement | None:
    """The judgement in a judge's `text`, None where a score is missing: then it is asked again, up to RETRIES times,
    and the picture dropped after that."""
    found = named_scores(text)
    return Judgement(**found) if len(found) == len(_SCORES) else None


def read_verified(text: str) -> float | None:
    """0 or 1 after "Score", else the only bare line of 0 or 1; None where there is neither, or "Score: 2".

    WISE `vllm_eval.py::extract_scores`.
    """
    if named := _NAMED_BINARY.search(text):
        return float(named[1])
    bare = _BARE_BINARY.findall(text)
    return float(bare[0]) if len(bare) == 1 else None


def score_legacy(judgements: Mapping[int, Judgement], *, partial: bool = False) -> WiseScores:
    """WISE of the paper, over judgements by prompt id.

    WISE_legacy `Calculate.py --category all`, which gives up too where an id is missing.

    Raises:
        HarmonError: not each of the 1000 prompts has its judgement, and `partial` does not say so.
    """
    return _score({prompt: one.wiscore for prompt, one in judgements.items()}, "legacy", partial)


def score_verified(scores: Mapping[int, float], *, partial: bool = False) -> WiseScores:
    """WISE_Verified, over scores of 0 or 1 by prompt id; the official script goes on where an id is missing.

    `calculate_verified.py --category all`.

    Raises:
        HarmonError: a score is neither 0 nor 1, or not each of the 1000 prompts has one and `partial` does not say so.
    """
    if odd := [prompt for prompt, value in scores.items() if value not in (0, 1)]:
        raise HarmonError(f"WISE_Verified prompt {odd[0]} has the score {scores[odd[0]]}; it must be 0 or 1.")
    return _score({prompt: float(value) for prompt, value in scores.items()}, "verified", partial)


def weighted(categories: Mapping[str, float], version: Version) -> float:
    """The overall score of means by category."""
    return sum(category.weight * categories[name] for name, category in CATEGORIES[version].items())


def _score(values: Mapping[int, float], version: Version, partial: bool) -> WiseScores:
    if strange := [prompt for prompt in values if not 1 <= prompt <= WISE_PROMPTS]:
        raise HarmonError(f"WISE has no prompt {strange[0]}; its ids go from 1 to {WISE_PROMPTS}.")
    require(f"WISE ({version}), judged pictures", len(values), WISE_PROMPTS, partial)
    of_category = {
        name: [value for prompt, value in values.items() if category.first <= prompt <= category.last]
        for name, category in CATEGORIES[version].items()
    }
    means = {name: sum(some) / len(some) for name, some in of_category.items() if some}
    counts = {name: len(some) for name, some in of_category.items()}
    overall = weighted(means, version) if len(means) == len(of_category) else None
    return WiseScores(version, len(values), means, counts, overall)
