"""Texts about a scene, each a pure function of it: captions, questions, dialogues, and the check of a text.

The rewriter learns `short_caption` from `dense_caption`, so the short one is a function of what the dense one
says: it names the objects in the dense caption's order, and the background where the dense caption says its
colour.
"""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

from pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    TEXTURES,
    Scene,
    SceneObject,
    trained_pairs,
)

NUMBERS: tuple[str, ...] = ("no", "one", "two", "three", "four")
BACKGROUND_SHARE = 0.7
"""Share of captions that say the background's colour."""

SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "middling"),
    "large": ("large", "big", "huge"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "smooth"),
    "striped": ("striped", "lined"),
    "dotted": ("dotted", "spotted"),
}
VERBS = ("sits", "lies", "is", "appears", "stands", "can be seen", "rests")
JOINTS = (", and", ", while", "; further,", " and")
OPENINGS = (
    "The picture shows {count}.",
    "This image contains {count}.",
    "There {are} {count} in this image.",
    "We see {count} here.",
    "A simple drawing with {count}.",
    "The scene is made of {count}.",
)
BACKDROPS = (
    "The background is {look}.",
    "Behind {them} there is a {look} wall.",
    "Everything is set on a {look} surface.",
    "The whole scene has a {look} backdrop.",
    "A {look} background fills the rest.",
)
MOODS = (
    "The mood is calm and quiet.",
    "The edges are crisp and the light is even.",
    "It looks like a page of a book for children.",
    "Nothing else is in view.",
    "The overall impression is bright and clear.",
)


@dataclass(frozen=True)
class Question:
    """A question that the picture answers in one word."""

    kind: Literal["existence", "count", "colour", "position"]
    question: str
    answer: str


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    text: str


def class_name(scene: Scene) -> str:
    """ "red circle": a one-object scene's class label, ImageNet's part in the paper's stage 1."""
    return " and ".join(" ".join(item.pair) for item in scene.objects)


def dense_caption(scene: Scene) -> str:
    """Two to five sentences: every object's colour, shape, size and place, the texture, in 70 % the
    background."""
    random = Random(f"dense/{scene!r}")
    order, coloured = _telling(scene)
    number = len(order)
    thing = random.choice(("object", "shape", "figure")) + ("s" if number > 1 else "")
    count = f"{NUMBERS[number]} {thing}"
    opening = random.choice(OPENINGS).format(count=count, are="are" if number > 1 else "is")
    look = random.choice(TEXTURE_WORDS[scene.texture]) + (f" {scene.background}" if coloured else "")
    backdrop = random.choice(BACKDROPS).format(look=look, them="them" if number > 1 else "it")
    body = _telling_sentences(random, order)
    sentences = [opening, *body, backdrop] if random.random() < 0.7 else [backdrop, *body]
    if number == 1 or (number == 2 and random.random() < 0.5):
        sentences.append(random.choice(MOODS))
    return " ".join(sentences)


def short_caption(scene: Scene) -> str:
    """One sentence naming every object with its colour, in the dense caption's order, in 70 % the
    background.

    Of several objects it says where each is, as in "A red circle at the left and a black cross at the right.": a
    picture is asked for exactly, not left to choose among all places.
    """
    order, coloured = _telling(scene)
    names = [_with_article(" ".join(item.pair)) for item in order]
    if len(names) > 1:
        names = [f"{name} at the {item.place}" for name, item in zip(names, order, strict=True)]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    where = f" on a {scene.texture} {scene.background} background" if coloured else ""
    return f"{listed[0].upper()}{listed[1:]}{where}."


def questions(scene: Scene) -> tuple[Question, ...]:
    """One question of each kind that has a single right answer, in varied order.

    Existence is yes for half of all scenes, and what is asked for in vain is never a held-out pair.
    """
    random = Random(f"questions/{scene!r}")
    present = [item.pair for item in scene.objects]
    there = random.random() < 0.5
    asked = random.choice(present if there else [pair for pair in trained_pairs() if pair not in present])
    asks = [
        Question("existence", f"Is there {_with_article(' '.join(asked))}?", "yes" if there else "no"),
        Question("count", f"How many {random.choice(('objects', 'shapes'))} are there?", NUMBERS[len(present)]),
    ]
    shapes = Counter(shape for _, shape in present)
    alone = [pair for pair in present if shapes[pair[1]] == 1]
    if alone:
        colour, shape = random.choice(alone)
        asks.append(Question("colour", f"What colour is the {shape}?", colour))
    beside = [(a, b) for a in scene.objects for b in scene.objects if a is not b and _side(a, b)]
    if beside:
        first, second = random.choice(beside)
        text = f"On which side of the {' '.join(second.pair)} is the {' '.join(first.pair)}?"
        asks.append(Question("position", text, _side(first, second)))
    random.shuffle(asks)
    return tuple(asks)


def conversation(scene: Scene) -> tuple[Question, ...]:
    """What a scene is trained with: the questions of `questions` and more of existence and colour, in varied order.

    Existence is asked as often as there are objects, and each time a coin says whether of one that is there: no
    answer follows from the answers before it. Of several objects, two places ask for what is there.
    """
    random = Random(f"conversation/{scene!r}")
    present = [item.pair for item in scene.objects]
    absent = [pair for pair in trained_pairs() if pair not in present]
    number = sum(random.random() < 0.5 for _ in present)
    asks = [
        Question("existence", f"Is there {_with_article(' '.join(pair))}?", answer)
        for pairs, answer, asked in ((present, "yes", number), (absent, "no", len(present) - number))
        for pair in random.sample(pairs, asked)
    ]
    shapes = Counter(shape for _, shape in present)
    alone = [pair for pair in present if shapes[pair[1]] == 1]
    asks += [
        Question("colour", f"What colour is the {shape}?", colour)
        for colour, shape in random.sample(alone, min(2, len(alone)))
    ]
    if len(present) > 1:
        asks += [
            Question("position", f"What is at the {item.place}?", " ".join(item.pair))
            for item in random.sample(scene.objects, 2)
        ]
    asks += [question for question in questions(scene) if question.kind in ("count", "position")]
    random.shuffle(asks)
    return tuple(asks)


def text_dialogue(scene: Scene) -> tuple[Turn, Turn]:
    """A conversation in words only: the dense caption with a question about it, and the answer."""
    asked = Random(f"dialogue/{scene!r}").choice(questions(scene))
    return Turn("user", f"{dense_caption(scene)} {asked.question}"), Turn("assistant", asked.answer)


def names_every_object(scene: Scene, text: str) -> bool:
    """Whether `text` names each object once, its colour right before its shape, and invents nothing.

    Invented is an object, a background or a texture that the picture lacks.
    """
    words = re.findall(r"[a-z]+", text.lower())
    pairs = [pair for pair in pairwise(words) if pair[0] in COLOURS and pair[1] in SHAPES]
    colours, shapes = sum(w in COLOURS for w in words), sum(w in SHAPES for w in words)
    return (
        Counter(pairs) == Counter(item.pair for item in scene.objects)
        and colours == shapes == len(pairs)
        and {w for w in words if w in BACKGROUNDS} <= {scene.background}
        and {w for w in words if w in TEXTURES} <= {scene.texture}
    )


def _telling(scene: Scene) -> tuple[list[SceneObject], bool]:
    """In which order the captions name the objects, and whether they say the background's colour."""
    random = Random(f"telling/{scene!r}")
    coloured = random.random() < BACKGROUND_SHARE
    return random.sample(scene.objects, len(scene.objects)), coloured


def _telling_sentences(random: Random, order: list[SceneObject]) -> list[str]:
    """The objects, one or two to a sentence."""
    clauses = [_clause(random, item) for item in order]
    sentences: list[str] = []
    while clauses:
        paired = len(clauses) > 1 and (len(order) > 2 or random.random() < 0.6)
        sentence = f"{clauses[0]}{random.choice(JOINTS)} {clauses[1]}" if paired else clauses[0]
        clauses = clauses[2:] if paired else clauses[1:]
        sentences.append(f"{sentence[0].upper()}{sentence[1:]}.")
    return sentences


def _clause(random: Random, item: SceneObject) -> str:
    name = _with_article(f"{random.choice(SIZE_WORDS[item.size])} {' '.join(item.pair)}")
    verb, place = random.choice(VERBS), random.choice(_places(item))
    if random.random() < 0.25:
        return f"{place} {verb} {name}" if verb != "can be seen" else f"{place} there is {name}"
    return f"{name} {verb} {place}"


def _places(item: SceneObject) -> tuple[str, ...]:
    """Wordings of the object's place."""
    row, column = item.row, item.column
    if row and column:
        return f"in the {row} {column} corner", f"at the {row} {column}"
    if row:
        return (
            f"at the {row}",
            f"near the {row} edge",
            f"in the {'upper' if row == 'top' else 'lower'} middle",
        )
    if column:
        return f"on the {column}", f"near the {column} edge", f"at the {column} side"
    return "in the middle", "in the centre", "at the centre of the picture"


def _side(first: SceneObject, second: SceneObject) -> str:
    """On which side of `second` the object `first` lies; empty where it lies askew."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > 3 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 3 * abs(dx):
        return "above" if dy < 0 else "below"
    return ""


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
