"""GenEval's prompts, known by their wording: six templates over its objects, colours, counts and places (EVALS.md 3.1).

Training data copies the templates rather than the prompts: about 10,000 of BLIP3o-60k's captions do. The vocabulary is
closed, so that an ordinary caption which begins alike ("a photo of a dog on a beach") is not one.
"""

import re

OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes as GenEval spells them: three of them with `computer` or `tv` before COCO's word."""
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
