"""What a picture of coloured shapes shows: a detector for generated scenes, by rule and without learning.

Pixels are named after the nearest colour of `pipelines.scenes` in OKLab (Ottosson 2020), a space where equal
distances look equally different. Object-coloured regions of a stated least area before a pale background are
objects; a region is split where two colours each have a solid core. Shapes are told by overlap with the
renderer's own shapes, moved to the same centre and scaled to the same area. Blur and noise are met by a small
mean filter and by majorities.

A picture without a background (filled with one colour, or with noise) shows no object at all, so that neither
can score.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, SceneObject, render

Mask = NDArray[np.bool_]
Planes = NDArray[np.float64]

LEAST_AREA = 0.008
"""Share of the picture below which a region is no object: half the smallest object of `pipelines.scenes`."""

LEAST_BACKGROUND = 0.4
"""Share of the picture that must look like a background; the fullest rendered scene leaves two thirds."""

LEAST_PART = 0.25
"""Share of a region that a second colour's solid core must have to be an object of its own, not a rim."""

TEXTURE_SHADES = (0, 8, 16)
"""How much darker, of 255, a textured background may be."""

GRID = 32
"""Side of the grid that shapes are compared on; it spans twice the square root of the shape's area."""

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True)
class SeenObject:
    """One region taken for an object; `area` is its share of the picture, x and y its centre as fractions of
    the side, `overlap` the intersection over union with the shape it was taken for."""

    colour: str
    shape: str
    area: float
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Sight:
    """What a picture shows: the background's colour (None where there is none) and the objects, largest
    first."""

    background: str | None
    objects: tuple[SeenObject, ...]

    def say(self) -> str:
        """In words, for a person: "red circle on mint"."""
        named = ", ".join(f"{item.colour} {item.shape}" for item in self.objects) or "no object"
        return f"{named} on {self.background}" if self.background else f"{named}, no background"


def see(picture: NDArray[np.uint8]) -> Sight:
    """The objects and the background of `picture`, uint8 [S, S, 3] RGB, S at least 32."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 32:
        raise ValueError(f"a picture must be uint8 [S, S, 3] with S >= 32, not {picture.dtype} {picture.shape}")
    labels = _nearest_names(picture)
    named = [int(np.sum(labels == index)) for index in range(len(COLOURS), len(COLOURS) + len(BACKGROUNDS))]
    if sum(named) < LEAST_BACKGROUND * labels.size:
        return Sight(None, ())
    background = tuple(BACKGROUNDS)[int(np.argmax(named))]
    regions, number = ndimage.label(labels < len(COLOURS))
    objects = [item for region in range(1, number + 1) for item in _objects_of(regions == region, labels)]
    return Sight(background, tuple(sorted(objects, key=lambda item: -item.area)))


def oklab(rgb: NDArray[np.floating] | NDArray[np.uint8]) -> Planes:
    """sRGB values in [0, 255], [..., 3], as OKLab coordinates (lightness, green to red, blue to yellow)."""
    encoded = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab: Planes = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return lab


def _nearest_names(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For every pixel the number of the nearest colour: objects first, then backgrounds. [S, S]"""
    size = _window(picture.shape[0])
    smooth = ndimage.uniform_filter(picture.astype(np.float64), size=(size, size, 1), mode="nearest")
    prototypes, owners = _prototypes()
    distance = ((oklab(smooth)[:, :, None] - prototypes) ** 2).sum(axis=-1)
    labels: NDArray[np.int64] = owners[distance.argmin(axis=-1)]
    return labels


def _window(side: int) -> int:
    """Pixels on a side of what counts as detail: 3 of 64, always odd."""
    return 2 * round(side / 64) + 1


@cache
def _prototypes() -> tuple[Planes, NDArray[np.int64]]:
    """Colours in OKLab [P, 3] and the name's number of each [P]; backgrounds come in every texture's
    shade."""
    pale = [
        (np.array(colour) - shade, index)
        for index, colour in enumerate(BACKGROUNDS.values())
        for shade in TEXTURE_SHADES
    ]
    colours = [*(np.array(colour) for colour in COLOURS.values()), *(colour for colour, _ in pale)]
    owners = [*range(len(COLOURS)), *(len(COLOURS) + index for _, index in pale)]
    return oklab(np.array(colours)), np.array(owners, dtype=np.int64)


def _objects_of(region: Mask, labels: NDArray[np.int64]) -> list[SeenObject]:
    """The objects of one connected region: one, unless two colours each fill a solid part of it."""
    area = int(region.sum())
    if area < LEAST_AREA * region.size:
        return []
    counts = np.bincount(labels[region], minlength=len(COLOURS))[: len(COLOURS)]
    parts = [(index, part) for index in range(len(COLOURS)) for part in _cores(region & (labels == index), area)]
    if len(parts) < 2:
        return [_seen(region, int(counts.argmax()))]
    return [_seen(part, index) for index, part in parts]


def _cores(coloured: Mask, area: int) -> list[Mask]:
    """The solid parts of one colour within a region of `area` pixels: rims and specks do not survive
    opening."""
    size = _window(coloured.shape[0])
    opened, number = ndimage.label(ndimage.binary_opening(coloured, np.ones((size, size))))
    parts = [opened == part for part in range(1, number + 1)]
    return [part for part in parts if part.sum() >= max(LEAST_AREA * coloured.size, LEAST_PART * area)]


def _seen(mask: Mask, colour: int) -> SeenObject:
    side = mask.shape[0]
    filled = ndimage.binary_fill_holes(mask)
    y, x = (float(centre) for centre in ndimage.center_of_mass(filled))
    shape, overlap = _nearest_shape(_canonical(filled))
    name = tuple(COLOURS)[colour]
    return SeenObject(name, shape, float(mask.mean()), (x + 0.5) / side, (y + 0.5) / side, overlap)


def _canonical(mask: Mask) -> Mask:
    """The mask with its centre moved to the middle of a GRID x GRID grid and its area scaled to a quarter of
    it."""
    y, x = ndimage.center_of_mass(mask)
    steps = (np.arange(GRID) + 0.5) / GRID * 2 - 1
    across = np.meshgrid(steps, steps)
    scale = np.sqrt(mask.sum())
    where = [y + across[1] * scale, x + across[0] * scale]
    taken: Mask = ndimage.map_coordinates(mask.astype(np.float64), where, order=1) > 0.5
    return taken


def _nearest_shape(mask: Mask) -> tuple[str, float]:
    overlaps = {name: float((mask & shape).sum() / (mask | shape).sum()) for name, shape in _templates().items()}
    best = max(overlaps, key=lambda name: overlaps[name])
    return best, overlaps[best]


@cache
def _templates() -> dict[str, Mask]:
    """Every shape as the renderer draws it, in canonical form."""
    return {shape: _canonical(_drawn(shape)) for shape in SHAPES}


def _drawn(shape: str) -> Mask:
    item = SceneObject("black", shape, "large", 0.5, 0.5, 0.25)
    picture = render(Scene(0, "white", "plain", (item,), "clean"), side=256)
    drawn: Mask = picture[:, :, 0] < 128
    return drawn
