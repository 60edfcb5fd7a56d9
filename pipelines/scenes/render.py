"""Draws a scene with numpy alone: anti-aliased shapes over a textured background, then the scene's finish.

Only additions, multiplications and square roots are used, so the bytes are the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from pipelines.scenes.scene import BACKGROUNDS, COLOURS, Scene, SceneObject

Plane = NDArray[np.float64]

REACH: dict[str, float] = {"circle": 1.0, "square": 1.26, "triangle": 1.2, "cross": 1.08}
"""Distance from an object's centre to its farthest point, in radii."""

TEXTURE_DEPTH = 12.0
"""How much darker, of 255, the stripes and dots are than the background."""

BLUR_SIDE = 0.055
"""Side of the box of a blurred finish, a fraction of the picture's side; the box is applied three times."""

FADE = 0.62
"""How far a faded finish moves every colour towards light grey."""

FADED_GREY = 214.0


def render(scene: Scene, side: int = 128) -> NDArray[np.uint8]:
    """The picture of `scene`, [side, side, 3] RGB, the same composition at every side."""
    steps = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(steps, steps)
    picture = np.empty((side, side, 3))
    picture[:] = BACKGROUNDS[scene.background]
    picture -= TEXTURE_DEPTH * _texture(scene.texture, x, y, side)[..., None]
    for item in scene.objects:
        inside = np.clip(0.5 - _distance(item, x, y) * side, 0.0, 1.0)[..., None]
        picture += inside * (np.array(COLOURS[item.colour], dtype=np.float64) - picture)
    return np.clip(np.rint(_finished(picture, scene, side)), 0, 255).astype(np.uint8)


def _texture(texture: str, x: Plane, y: Plane, side: int) -> Plane:
    """Share of darkening in [0, 1] at every pixel, [side, side]."""
    period = 0.125
    across = np.abs(x % period - period / 2)
    if texture == "striped":
        return np.clip(0.5 + (period / 4 - across) * side, 0.0, 1.0)
    if texture == "dotted":
        along = np.abs(y % period - period / 2)
        inside: Plane = np.clip(0.5 + (period / 3.2 - np.sqrt(across**2 + along**2)) * side, 0.0, 1.0)
        return inside
    return np.zeros_like(x)


def _distance(item: SceneObject, x: Plane, y: Plane) -> Plane:
    """Distance to the outline in fractions of the side, negative inside; beyond corners a lower bound."""
    dx, dy, radius = x - item.x, y - item.y, item.radius
    distance: Plane
    if item.shape == "circle":
        distance = np.sqrt(dx**2 + dy**2) - radius
    elif item.shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.89 * radius
    elif item.shape == "triangle":
        distance = np.maximum(dy, np.abs(dx) * (3.0**0.5 / 2) - dy * 0.5) - 0.6 * radius
    else:
        upright = np.maximum(np.abs(dx) - 0.36 * radius, np.abs(dy) - 1.02 * radius)
        lying = np.maximum(np.abs(dx) - 1.02 * radius, np.abs(dy) - 0.36 * radius)
        distance = np.minimum(upright, lying)
    return distance


def _finished(picture: Plane, scene: Scene, side: int) -> Plane:
    if scene.finish == "faded":
        return picture + FADE * (FADED_GREY - picture)
    if scene.finish == "blurred":
        for _ in range(3):
            picture = _box(_box(picture, 0, side), 1, side)
    return picture


def _box(picture: Plane, axis: int, side: int) -> Plane:
    """Mean over a window along one axis, the picture's edge repeated beyond it."""
    reach = max(1, round(BLUR_SIDE * side / 2))
    padding = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
    padded = np.pad(picture, padding, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
    mean: Plane = windows.mean(axis=-1)
    return mean
