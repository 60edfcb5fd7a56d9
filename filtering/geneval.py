"""GenEval's prompts, known by their wording: six templates over its objects, colours, counts and places (EVALS.md 3.1).

Training data copies the templates rather than the prompts: about 10,000 of BLIP3o-60k's captions do. The vocabulary is
closed, so that an ordinary caption which begins alike ("a photo of a dog on a beach") is not one.
"""

import re

from pipelines.coco_names import COCO_NAMES

OBJECTS = COCO_NAMES
SHORT = ("mouse", "remote", "keyboard")  # COCO's own words for those three, which copies of the templates use
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLURALS = ("knives", "mice", "benches", "sandwiches", "toothbrushes", "couches", "buses", *OBJECTS)
"""Besides an added s or es, which is how GenEval makes all of its plurals ("knifes", "benchs"); some have none."""

LONGEST = 120  # characters: the longest prompt has fewer


def _either(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


_ONE = rf"an? (?:{_either(COLOURS)} )?{_either(OBJECTS + SHORT)}"
_MANY = rf"(?:two|three|four) (?:{_either(PLURALS)}|{_either(OBJECTS + SHORT)}e?s)"
_BESIDE = "(?:and|left of|right of|above|below)"
PROMPT = re.compile(rf"a photo of (?:{_ONE}(?: {_BESIDE} {_ONE})?|{_MANY})", re.IGNORECASE)
"""One object, two objects, count, colour, position, two colours."""


def is_geneval(text: str) -> bool:
    """Whether the whole of a text is worded as a GenEval prompt, Harmon's words before a prompt left aside."""
    plain = " ".join(text[: 2 * LONGEST].split()).removeprefix("Generate an image: ").strip(" .!\"'")
    return len(plain) < LONGEST and len(text) < 2 * LONGEST and PROMPT.fullmatch(plain) is not None
