"""What is in a rendered scene: one to four coloured shapes of three sizes before a pale background.

A scene is a pure function of (seed, index, objects, split); all lengths are fractions of the picture's side,
measured from its top left corner.
"""

from dataclasses import dataclass
from random import Random
from typing import Literal

RGB = tuple[int, int, int]
Finish = Literal["clean", "blurred", "faded"]
Split = Literal["train", "held_out", "unseen"]

COLOURS: dict[str, RGB] = {
    "red": (205, 22, 40),
    "orange": (242, 122, 10),
    "yellow": (255, 226, 30),
    "green": (22, 142, 56),
    "cyan": (0, 184, 204),
    "blue": (30, 66, 206),
    "purple": (150, 40, 172),
    "black": (18, 18, 20),
}
"""Colours of objects, at least 100 apart in RGB so that a blurry picture still tells them apart."""

BACKGROUNDS: dict[str, RGB] = {
    "white": (250, 250, 250),
    "grey": (150, 152, 155),
    "silver": (203, 205, 208),
    "cream": (250, 238, 195),
    "mint": (192, 236, 206),
    "sky": (190, 220, 248),
    "lavender": (218, 200, 240),
}
"""Colours of backgrounds, pale or greyish, at least 120 from every object's colour."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
SIZES: tuple[str, ...] = ("small", "medium", "large")
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "triangle"),
        ("orange", "circle"),
        ("yellow", "square"),
        ("green", "cross"),
        ("cyan", "circle"),
        ("blue", "square"),
        ("purple", "cross"),
        ("black", "triangle"),
    }
)
"""(colour, shape) pairs that no picture and no text of the splits `train` and `unseen` contains:
one for each colour, two for each shape."""

PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Ninths of a picture, row by row."""

RADII: dict[int, dict[str, tuple[float, float]]] = {
    1: {"small": (0.203, 0.232), "medium": (0.245, 0.272), "large": (0.285, 0.312)},
    2: {"small": (0.125, 0.138), "medium": (0.150, 0.162), "large": (0.174, 0.185)},
    3: {"small": (0.118, 0.130), "medium": (0.140, 0.152), "large": (0.162, 0.174)},
    4: {"small": (0.100, 0.108), "medium": (0.115, 0.122), "large": (0.130, 0.138)},
}
"""Radius by number of objects and size: a size word compares objects of pictures with as many objects.
One object is 13 to 20 pixels of 64, which a latent of 4x4 tokens can hold."""

LAYOUTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),),),
    2: (
        ((0.26, 0.5), (0.74, 0.5)),
        ((0.5, 0.26), (0.5, 0.74)),
        ((0.26, 0.26), (0.74, 0.74)),
        ((0.74, 0.26), (0.26, 0.74)),
    ),
    3: (
        ((0.26, 0.26), (0.74, 0.26), (0.5, 0.74)),
        ((0.5, 0.26), (0.26, 0.74), (0.74, 0.74)),
        ((0.26, 0.26), (0.26, 0.74), (0.74, 0.5)),
        ((0.26, 0.5), (0.74, 0.26), (0.74, 0.74)),
    ),
    4: (
        ((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)),
        ((0.5, 0.2), (0.2, 0.5), (0.8, 0.5), (0.5, 0.8)),
    ),
}
"""Centres (x, y) that objects are put near, by number of objects."""

JITTER: dict[int, float] = {1: 0.06, 2: 0.025, 3: 0.025, 4: 0.02}
"""How far an object may lie from its centre along each axis, by number of objects."""

OBJECT_WEIGHTS: dict[int, float] = {1: 0.4, 2: 0.36, 3: 0.12, 4: 0.12}
"""Share of scenes with so many objects, where the caller does not say how many."""

FLAWED_SHARE = 0.12
"""Share of `train` scenes whose finish a clarity filter should refuse (half blurred, half faded)."""


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; x, y and radius are fractions of the picture's side, y grows downwards."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape): what a caption must say of the object, and unique within its scene."""
        return self.colour, self.shape

    @property
    def row(self) -> str:
        """The third of the picture, top to bottom, in which the centre lies; empty for the middle one."""
        return "top" if self.y < 0.4 else "bottom" if self.y > 0.6 else ""

    @property
    def column(self) -> str:
        """The third of the picture, left to right, in which the centre lies; empty for the middle one."""
        return "left" if self.x < 0.4 else "right" if self.x > 0.6 else ""

    @property
    def place(self) -> str:
        """One of PLACES: the ninth of the picture in which the centre lies."""
        return " ".join(word for word in (self.row, self.column) if word) or "middle"


@dataclass(frozen=True)
class Scene:
    """Ground truth of one picture; equal scenes have equal pictures and equal texts."""

    index: int
    background: str
    texture: str
    objects: tuple[SceneObject, ...]
    finish: Finish


def make_scene(seed: int, index: int, objects: int | None = None, split: Split = "train") -> Scene:
    """Scene number `index` of `split` under `seed`, with `objects` (1 to 4; None: drawn) objects.

    train and unseen hold the pairs that are not held out, from different random streams; held_out holds one
    object whose pair is held out. Only train scenes have flawed finishes. Raises ValueError for other numbers
    of objects.
    """
    random = Random(f"scene/{seed}/{split}/{index}")
    drawn = random.choices(tuple(OBJECT_WEIGHTS), tuple(OBJECT_WEIGHTS.values()))[0]
    number = objects if objects is not None else 1 if split == "held_out" else drawn
    if number not in RADII or (split == "held_out" and number != 1):
        raise ValueError(f"a scene of split {split!r} cannot have {objects} objects: use 1 to 4, or 1 for held_out")
    pairs = sorted(HELD_OUT_PAIRS) if split == "held_out" else trained_pairs()
    centres = random.choice(LAYOUTS[number])
    chosen = random.sample(pairs, number)
    placed = tuple(_place(random, pair, centre, number) for pair, centre in zip(chosen, centres, strict=True))
    finish: Finish = "clean"
    if random.random() < FLAWED_SHARE and split == "train":
        finish = random.choice(("blurred", "faded"))
    background, texture = random.choice(tuple(BACKGROUNDS)), random.choice(TEXTURES)
    return Scene(index, background, texture, placed, finish)


def trained_pairs() -> list[tuple[str, str]]:
    """All (colour, shape) pairs that are not held out, in a fixed order."""
    return [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS]


def _place(random: Random, pair: tuple[str, str], centre: tuple[float, float], number: int) -> SceneObject:
    size = random.choice(SIZES)
    radius = random.uniform(*RADII[number][size])
    x, y = (round(c + random.uniform(-JITTER[number], JITTER[number]), 4) for c in centre)
    return SceneObject(*pair, size, x, y, round(radius, 4))
