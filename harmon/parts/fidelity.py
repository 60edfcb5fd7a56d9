"""How well a latent holds a scene: what is left of pictures, colours and shapes after encoding and
decoding."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipelines.scenes import COLOURS, SHAPES, Scene, SceneObject, make_scene, render

SEED = 9


class Autoencoder(Protocol):
    """What both autoencoders of `harmon.model` offer."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Fidelity:
    """Of unseen one-object scenes: mean peak signal to noise ratio in dB over values of 0 to 255, and the
    share whose decoded picture is nearer to the true object than to the same object in another colour, or of
    another shape."""

    side: int
    scenes: int
    psnr: float
    colour: float
    shape: float


def pixels(scenes: list[Scene], side: int) -> Tensor:
    """The scenes' pictures, [B, 3, side, side] float32 in [-1, 1]."""
    pictures = np.stack([render(scene, side) for scene in scenes])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def fidelity(autoencoder: Autoencoder, side: int, number: int = 200) -> Fidelity:
    """Measures `autoencoder` on `number` unseen one-object scenes of `side` pixels."""
    scenes = [make_scene(SEED, index, objects=1, split="unseen") for index in range(number)]
    images = pixels(scenes, side)
    with torch.inference_mode():
        decoded = autoencoder.decode(autoencoder.encode(images)).clamp(-1.0, 1.0)
    errors = (127.5 * (decoded - images)).square().mean(dim=(1, 2, 3))
    colours = shapes = 0
    for scene, picture in zip(scenes, decoded, strict=True):
        (item,) = scene.objects
        colours += nearest(scene, [replace(item, colour=colour) for colour in COLOURS], picture) == item
        shapes += nearest(scene, [replace(item, shape=shape) for shape in SHAPES], picture) == item
    return Fidelity(
        side,
        number,
        round(float((10 * torch.log10(255.0**2 / errors)).mean()), 2),
        colours / number,
        shapes / number,
    )


def nearest(scene: Scene, objects: list[SceneObject], picture: Tensor) -> SceneObject:
    """Which of `objects`, put into the one-object scene, gives the picture nearest to `picture` [3, H, W]."""
    others = pixels([replace(scene, objects=(item,)) for item in objects], picture.shape[-1])
    return objects[int((others - picture).square().sum(dim=(1, 2, 3)).argmin())]
