"""Scores of generated scenes and of answers about scenes, against exact ground truth.

Every score is a count of right cases out of n beside the level that costs nothing: chance for pictures, the
best constant answer (the commonest right one among the same questions) for answers. Judgements are strict
where leniency could be bought: a picture that shows nothing is wrong, and two-object scenes need exactly two
objects.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harmon.evaluation.sight import Sight, see
from pipelines.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, short_caption

Kind = Literal["colour", "count", "existence", "position"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NUMERALS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Score:
    """`right` of `n` cases; `chance` is the share that costs nothing, None where no such level exists."""

    right: int
    n: int
    chance: float | None = None

    @property
    def share(self) -> float:
        """Right cases out of all, 0 where there are none."""
        return self.right / self.n if self.n else 0.0

    def report(self) -> dict[str, Any]:
        """As JSON: right, n, share and chance."""
        return {"right": self.right, "n": self.n, "share": round(self.share, 4), "chance": self.chance}


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for: (colour, shape) pairs, a background where it names one, and the place of each pair, which
    it names where there are several."""

    prompt: str
    pairs: tuple[tuple[str, str], ...]
    background: str | None
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judged:
    """One generated picture beside its prompt. `colours` and `shapes`: all that was asked for and nothing
    else, for one object judged on the largest one seen; `whole`: as many objects as asked; `background` is
    None where the prompt names none."""

    wanted: Wanted
    sight: Sight
    colours: bool
    shapes: bool
    whole: bool
    background: bool | None


@dataclass(frozen=True)
class GenerationScores:
    """Generated pictures of prompts with equally many objects.

    For one object: `colour` and `shape` are judged on the largest object seen, whatever else there is; `both`
    needs them together and no second object. For more: `colour` needs exactly the colours asked for, on
    exactly as many objects; `shape` likewise. `whole` is the share of pictures with the number of objects
    asked for.
    """

    objects: int
    colour: Score
    shape: Score
    both: Score
    whole: Score
    background: Score

    def report(self) -> dict[str, Any]:
        """As JSON: the number of objects and each score."""
        names = ("colour", "shape", "both", "whole", "background")
        return {"objects": self.objects, **{name: getattr(self, name).report() for name in names}}


@dataclass(frozen=True)
class Asked:
    """One question with its right answer and the answer given."""

    kind: Kind
    question: str
    answer: str
    given: str

    @property
    def right(self) -> bool:
        """Whether the given answer equals the right one after `normalised`."""
        return normalised(self.given) == normalised(self.answer)


@dataclass(frozen=True)
class AnswerScore:
    """Answers to the questions of one kind; `score.chance` is the share that always saying `constant` would
    get."""

    kind: Kind
    score: Score
    constant: str

    def report(self) -> dict[str, Any]:
        """As JSON: kind, the constant answer and the score."""
        return {"kind": self.kind, "constant": self.constant, **self.score.report()}


def wanted_of(scene: Scene) -> Wanted:
    """The prompt of `scene`, its short caption, and what that caption asks for."""
    prompt = short_caption(scene)
    named = scene.background if re.search(rf"\b{scene.background}\b", prompt.lower()) else None
    places = tuple(item.place for item in scene.objects)
    return Wanted(prompt, tuple(item.pair for item in scene.objects), named, places)


def judge(wanted: Wanted, picture: NDArray[np.uint8]) -> Judged:
    """What `picture`, uint8 [S, S, 3], shows of what was wanted."""
    sight = see(picture)
    whole = len(sight.objects) == len(wanted.pairs)
    judged = sight.objects[:1] if len(wanted.pairs) == 1 else sight.objects
    colours = Counter(item.colour for item in judged) == Counter(colour for colour, _ in wanted.pairs)
    shapes = Counter(item.shape for item in judged) == Counter(shape for _, shape in wanted.pairs)
    background = None if wanted.background is None else sight.background == wanted.background
    return Judged(wanted, sight, colours, shapes, whole, background)


def score_pictures(judged: Sequence[Judged]) -> GenerationScores:
    """Scores of pictures whose prompts name equally many objects; raises ValueError where they do not."""
    numbers = {len(one.wanted.pairs) for one in judged}
    if len(numbers) != 1:
        raise ValueError(f"pictures of prompts with {sorted(numbers)} objects cannot share one score; score each apart")
    n = len(judged)
    named = [one.background for one in judged if one.background is not None]
    together = [one.colours and one.shapes and one.whole and pairs_match(one) for one in judged]
    return GenerationScores(
        objects=numbers.pop(),
        colour=Score(sum(one.colours for one in judged), n, _chance(judged, 0, len(COLOURS))),
        shape=Score(sum(one.shapes for one in judged), n, _chance(judged, 1, len(SHAPES))),
        both=Score(sum(together), n, _chance(judged, None, len(COLOURS) * len(SHAPES))),
        whole=Score(sum(one.whole for one in judged), n),
        background=Score(sum(named), len(named), 1 / len(BACKGROUNDS)),
    )


def score_answers(asked: Iterable[Asked]) -> list[AnswerScore]:
    """One score for each kind that was asked about, in the order of KINDS."""
    of_kind: dict[Kind, list[Asked]] = {}
    for one in asked:
        of_kind.setdefault(one.kind, []).append(one)
    scores: list[AnswerScore] = []
    for kind in KINDS:
        if kind in of_kind:
            answers = Counter(normalised(one.answer) for one in of_kind[kind])
            constant, times = max(sorted(answers.items()), key=lambda item: item[1])
            n = len(of_kind[kind])
            scores.append(AnswerScore(kind, Score(sum(one.right for one in of_kind[kind]), n, times / n), constant))
    return scores


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no punctuation, no article, digits as words, "none" as
    "no"."""
    words = re.findall(r"[a-z]+|\d+", answer.lower())
    spelled = (NUMERALS[int(word)] if word.isdigit() and len(word) == 1 else word for word in words)
    return " ".join("no" if word in ("none", "zero") else word for word in spelled if word not in ("a", "an", "the"))


def pairs_match(one: Judged) -> bool:
    """Whether a picture shows exactly the pairs asked for."""
    return Counter((item.colour, item.shape) for item in one.sight.objects) == Counter(one.wanted.pairs)


def guess(pairs: tuple[tuple[str, str], ...], part: int | None, choices: int) -> float:
    """Probability that independent uniform guesses of a `part` of each pair (None: of all) give what is asked for, in
    any order."""
    counts = Counter(pair if part is None else pair[part] for pair in pairs)
    orders = math.factorial(len(pairs)) / math.prod(math.factorial(times) for times in counts.values())
    return orders / float(choices) ** len(pairs)


def _chance(judged: Sequence[Judged], part: int | None, choices: int) -> float:
    """Mean probability that independent uniform guesses give what each prompt asks for, in any order."""
    return sum(guess(one.wanted.pairs, part, choices) for one in judged) / len(judged)
