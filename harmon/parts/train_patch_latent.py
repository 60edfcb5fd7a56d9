"""Fits the demo's patch latent: principal components of 16x16 patches of scenes and of the demo's
photographs.

`python -m harmon.parts.train_patch_latent` writes harmon/parts/demo/patch_latent.safetensors and prints its
fidelity.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harmon.model.patch_latent import PatchLatent
from harmon.parts.fidelity import fidelity, pixels
from pipelines.photographs import photographs
from pipelines.scenes import make_scene

PATCH_LATENT_FILE = Path(__file__).parent / "demo" / "patch_latent.safetensors"
SEED = 2
STRIDE = 16
CHANNELS = 16
"""Stride and channels of the paper's KL-16."""

SIDES = (64, 128)
"""Picture sides of the demo's stages 1-2 and 3."""

SCENES: dict[int, tuple[int, int]] = {64: (3000, 3000), 128: (500, 1000)}
"""By side: how many one-object scenes and how many with one to four; each picture of 128 has four times the
patches."""


def pictures(side: int) -> Tensor:
    """Scenes and photographs (shorter side scaled to `side`, centre cut out), [B, 3, side, side] in [-1,
    1]."""
    single, several = SCENES[side]
    scenes = [make_scene(SEED, index, objects=1) for index in range(single)]
    scenes += [make_scene(SEED, index) for index in range(single, single + several)]
    return torch.cat([pixels(scenes, side), torch.stack([_photograph(p.path, side) for p in photographs()])])


def _photograph(path: Path, side: int) -> Tensor:
    with Image.open(path) as image:
        scale = side / min(image.size)
        width, height = (max(side, round(length * scale)) for length in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    left, top = (width - side) // 2, (height - side) // 2
    values = np.asarray(small.crop((left, top, left + side, top + side)))
    return torch.from_numpy(values.copy()).permute(2, 0, 1).float().div(127.5).sub(1.0)


def fit() -> PatchLatent:
    """Fits on all sides at once: the pictures of a larger side are cut into tiles of the smallest."""
    smallest = min(SIDES)
    tiles = [_tiles(pictures(side), smallest) for side in SIDES]
    return PatchLatent.fit(torch.cat(tiles), CHANNELS, STRIDE)


def _tiles(images: Tensor, side: int) -> Tensor:
    cut = images.unfold(2, side, side).unfold(3, side, side)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="only measure the committed file")
    if not parser.parse_args().measure:
        fit().save(PATCH_LATENT_FILE)
    latent = PatchLatent.from_file(PATCH_LATENT_FILE)
    for side in SIDES:
        print(json.dumps(asdict(fidelity(latent, side))))


if __name__ == "__main__":
    main()
