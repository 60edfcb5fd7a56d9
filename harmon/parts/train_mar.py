"""Pretrains the demo's tiny MAR as the paper's was before Harmon: class-conditional masked autoregression.

The classes are the trained (colour, shape) pairs of `pipelines.scenes`, each at each of nine places. A picture's
class vector stands in the encoder's buffers in place of `fake_latent`, which takes its place for a tenth of the
pictures, as MAR does on ImageNet. A picture of several objects has the sum of their classes' vectors. A class's
vector is its colour's plus its shape's at that place; their sums are written as the rows of `class_emb`.

    python -m harmon.parts.train_mar             trains and writes harmon/parts/demo/mar.safetensors
    python -m harmon.parts.train_mar --measure   prints how many generated pictures show what was asked for
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harmon.evaluation.scenes import judge, score_pictures, wanted_of
from harmon.model.config import TRAIN_STEPS, HarmonConfig
from harmon.model.diffusion import ancestral_step, guided, tables
from harmon.model.mar import Grid, Mar, masked_count, take
from harmon.model.patch_latent import PatchLatent
from harmon.pictures import centre_crop
from pipelines.scenes import COLOURS, SHAPES, Scene, make_scene, render
from pipelines.scenes.scene import PLACES, trained_pairs

DEMO = Path(__file__).parent / "demo"
MAR_FILE = DEMO / "mar.safetensors"
SEED = 11
SCENES = 20000
SIDES = (64, 128)
"""Picture sides of the demo's stages; grids of 4 and 8 tokens a side."""

STEPS = 6000
BATCH = {64: 64, 128: 40}
LEARNING_RATE = 1e-3
WARM_UP = 100
CLASS_DROP = 0.1
"""MAR's share of pictures without their class."""

FULL_MASK_SHARE = 0.2
"""Share of steps that mask every position: with few tokens the class matters most there."""

LEAST_MASKED = 0.1
"""Mask ratios are uniform from here to 1. MAR's own, 0.7 to 1, show so little of 16 or 64 tokens that no neighbour is
ever learned from: objects then come out as scattered patches unless their place is always the same."""

SINE_AMPLITUDE = 0.5
"""Of the waves that the learned positional tables start as, instead of noise of 0.02: near tokens are alike at once."""

WAVELENGTHS = (0.6, 5.0)
"""Of these waves, in picture sides: a grid of 4 holds none shorter than half a side."""

GUIDANCE = 3.0
ITERATIONS = 8


@dataclass(frozen=True)
class Pictures:
    """Scenes as MAR sees them: tokens by side [n, N, C], and which colours [n, 72] and shapes [n, 36] stand where."""

    tokens: dict[int, Tensor]
    colours: Tensor
    shapes: Tensor


class ClassVectors(nn.Module):
    """Vectors of a colour at a place and of a shape at a place, whose sums are the class vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colour = nn.Parameter(0.1 * torch.randn(len(_COLOUR), width))
        self.shape = nn.Parameter(0.1 * torch.randn(len(_SHAPE), width))

    def forward(self, colours: Tensor, shapes: Tensor) -> Tensor:
        """What stands where, [B, 72] and [B, 36] -> vectors [B, D]."""
        return colours @ self.colour + shapes @ self.shape

    def rows(self) -> Tensor:
        """`class_emb`'s rows [216, D], in the order of CLASSES."""
        return torch.stack([self.colour[_COLOUR[p, c]] + self.shape[_SHAPE[p, s]] for p, c, s in CLASSES])


CLASSES = [(place, colour, shape) for place in PLACES for colour, shape in trained_pairs()]
_COLOUR = {place_colour: number for number, place_colour in enumerate(product(PLACES, COLOURS))}
_SHAPE = {place_shape: number for number, place_shape in enumerate(product(PLACES, SHAPES))}


def encode(mar: Mar, tokens: Tensor, grid: Grid, visible: Tensor, classes: Tensor) -> Tensor:
    """`Mar.encode` with a class vector [B, D] a picture in the buffers."""
    table_1TD = mar._positional_table(mar.encoder_pos_embed_learned, grid)
    buffer_1UD, image_1ND = table_1TD[:, : mar.config.buffer_size], table_1TD[:, mar.config.buffer_size :]
    image_BMD = mar.z_proj(take(tokens, visible)) + take(image_1ND, visible)
    x_BSD = mar.z_proj_ln(torch.cat([classes.unsqueeze(1) + buffer_1UD, image_BMD], 1))
    for block in mar.encoder_blocks:
        x_BSD = block(x_BSD)
    out: Tensor = mar.encoder_norm(x_BSD)
    return out


def loss(
    mar: Mar, tokens: Tensor, grid: Grid, classes: Tensor, ratio: float, repeats: int, draw: torch.Generator
) -> Tensor:
    """MAR's loss of a batch: mean over masked positions and `repeats` timesteps each."""
    batch, positions, channels = tokens.shape
    order = torch.rand(batch, positions, generator=draw).argsort(1)
    masked = masked_count(positions, ratio)
    hidden, visible = order[:, :masked], order[:, masked:].sort(1).values
    z = mar.decode(encode(mar, tokens, grid, visible, classes), grid, visible, hidden)
    timesteps = torch.randint(0, TRAIN_STEPS, (repeats, batch, masked), generator=draw)
    noise = torch.randn(repeats, batch, masked, channels, generator=draw)
    return mar.diffloss.loss_rows(z, take(tokens, hidden), timesteps, noise).mean()


def make_pictures(latent: PatchLatent, scenes: Sequence[Scene]) -> Pictures:
    """Latents of the scenes at all sides, as the training pipeline makes them from pictures of 128 pixels."""
    pictures = [Image.fromarray(render(scene)) for scene in scenes]
    tokens = {side: torch.cat([_tokens(latent, some, side) for some in _chunks(pictures)]) for side in SIDES}
    return Pictures(tokens, *what_stands_where(scenes))


def _tokens(latent: PatchLatent, pictures: Sequence[Image.Image], side: int) -> Tensor:
    """[B, N, C] in raster order."""
    crops = torch.from_numpy(np.stack([centre_crop(picture, side)[0] for picture in pictures]))
    return latent.encode(crops).flatten(2).transpose(1, 2)


def _chunks(pictures: Sequence[Image.Image], size: int = 500) -> Iterator[Sequence[Image.Image]]:
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def what_stands_where(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """1 for each colour at a place [n, 72] and for each shape at a place [n, 36] of the scenes' objects, else 0."""
    colours, shapes = torch.zeros(len(scenes), len(_COLOUR)), torch.zeros(len(scenes), len(_SHAPE))
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            colours[row, _COLOUR[item.place, item.colour]] = 1
            shapes[row, _SHAPE[item.place, item.shape]] = 1
    return colours, shapes


def train(steps: int, file: Path) -> None:
    """Trains on both grids in turn and writes the weights under their released names."""
    torch.manual_seed(SEED)
    config = HarmonConfig.from_file(DEMO / "harmon.yaml")
    latent = PatchLatent.from_file(DEMO / "patch_latent.safetensors")
    scenes = [make_scene(SEED, index, objects=1 if index % 5 < 1 else None) for index in range(SCENES)]
    pictures = make_pictures(latent, [scene for scene in scenes if scene.finish == "clean"])
    mar, vectors = Mar(config.mar, config.head), ClassVectors(config.mar.encoder_width)
    start_as_waves(mar, config.mar.native_grid)
    mar.class_emb.weight.requires_grad_(False)
    weights = [*(p for p in mar.parameters() if p.requires_grad), *vectors.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))),
    )
    draw = torch.Generator().manual_seed(SEED)
    begun, sums = time.process_time(), {side: [0.0, 0] for side in SIDES}
    for step in range(steps):
        side = SIDES[step % len(SIDES)]
        rows = torch.randint(0, len(pictures.colours), (BATCH[side],), generator=draw)
        dropped = torch.rand(len(rows), 1, generator=draw) < CLASS_DROP
        classes = vectors(pictures.colours[rows], pictures.shapes[rows])
        classes = torch.where(dropped, mar.fake_latent, classes)
        full, ratio = torch.rand(2, generator=draw).tolist()
        ratio = 1.0 if full < FULL_MASK_SHARE else LEAST_MASKED + (1 - LEAST_MASKED) * ratio
        grid = Grid(side // latent.stride, side // latent.stride)
        value = loss(mar, pictures.tokens[side][rows], grid, classes, ratio, config.head.batch_mul, draw)
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        sums[side] = [sums[side][0] + float(value.detach()), sums[side][1] + 1]
        if (step + 1) % 200 == 0 or step + 1 == steps:
            means = {str(s): round(total / count, 4) for s, (total, count) in sums.items() if count}
            print(
                json.dumps({"step": step + 1, "cpu_s": round(time.process_time() - begun, 1), **means}),
                flush=True,
            )
            sums = {side: [0.0, 0] for side in SIDES}
        if (step + 1) % 500 == 0 or step + 1 == steps:
            mar.class_emb.weight.data.copy_(vectors.rows())
            _save(mar, file)


def start_as_waves(mar: Mar, side: int) -> None:
    """Set the image positions [side * side, D] of the learned tables to sines and cosines of their row and column.

    Half the width tells the row, half the column, in wavelengths of WAVELENGTHS picture sides.
    """
    for table in (mar.encoder_pos_embed_learned, mar.decoder_pos_embed_learned, mar.diffusion_pos_embed_learned):
        width = table.shape[2]
        shortest, longest = (math.log10(length) for length in WAVELENGTHS)
        frequencies = 2 * math.pi / torch.logspace(shortest, longest, width // 4)
        angles = (torch.arange(side) + 0.5).unsqueeze(1) / side * frequencies
        line = SINE_AMPLITUDE * torch.cat([angles.sin(), angles.cos()], 1)
        rows, columns = line.unsqueeze(1).expand(-1, side, -1), line.unsqueeze(0).expand(side, -1, -1)
        table.data[0, -side * side :] = torch.cat([rows, columns], -1).flatten(0, 1)


def _save(mar: Mar, file: Path) -> None:
    fresh = file.with_suffix(".writing")
    save_file({f"mar.{name}": value.contiguous() for name, value in mar.state_dict().items()}, fresh)
    fresh.replace(file)


@torch.inference_mode()
def generate(mar: Mar, classes: Tensor, grid: Grid, clip_x0: float, steps: str, draw: torch.Generator) -> Tensor:
    """Tokens [B, N, C] of class vectors [B, D], with guidance against `fake_latent`."""
    batch, positions, channels = len(classes), grid.positions, mar.config.token_channels
    both = torch.cat([classes, mar.fake_latent.expand(batch, -1)])
    order = torch.rand(batch, positions, generator=draw).argsort(1)
    tokens, masked = torch.zeros(batch, positions, channels), positions
    for iteration in range(ITERATIONS):
        following = math.floor(positions * math.cos(math.pi / 2 * (iteration + 1) / ITERATIONS))
        following = 0 if iteration + 1 == ITERATIONS else max(1, min(masked - 1, following))
        chosen, visible = order[:, following:masked], order[:, masked:].sort(1).values
        x = encode(mar, tokens.repeat(2, 1, 1), grid, visible.repeat(2, 1), both)
        z = mar.decode(x, grid, visible.repeat(2, 1), chosen.repeat(2, 1))
        drawn = _denoise(mar, mar.diffloss.net.cond_embed(z), clip_x0, steps, draw)
        tokens.scatter_(1, chosen.unsqueeze(-1).expand(-1, -1, channels), drawn)
        masked = following
    return tokens


def _denoise(mar: Mar, embedded: Tensor, clip_x0: float, steps: str, draw: torch.Generator) -> Tensor:
    chain = tables(steps, embedded.device)
    shape = (len(embedded) // 2, embedded.shape[1], mar.config.token_channels)
    x = torch.randn(shape, generator=draw)
    for index in reversed(range(len(chain.timesteps))):
        now = chain.timesteps[index].expand(len(embedded), shape[1])
        cond, uncond = mar.diffloss.net(x.repeat(2, 1, 1), now, embedded).chunk(2)
        noise = torch.randn(shape, generator=draw) if index else None
        x, _ = ancestral_step(chain.at(index), x, guided(cond, uncond, GUIDANCE), noise, 1.0, clip_x0)
    return x


def measure(file: Path, side: int, number: int = 96) -> dict[str, Any]:
    """Scores of `number` generated pictures each of one and of two objects of unseen scenes."""
    config = HarmonConfig.from_file(DEMO / "harmon.yaml")
    latent = PatchLatent.from_file(DEMO / "patch_latent.safetensors")
    mar = Mar(config.mar, config.head)
    mar.load_state_dict({name.removeprefix("mar."): value for name, value in load_file(file).items()})
    train_set = make_pictures(latent, [make_scene(SEED, index) for index in range(200)])
    clip_x0 = float(train_set.tokens[side].abs().max())
    grid, steps = Grid(side // latent.stride, side // latent.stride), config.head.sampling_steps
    row_of = {pair_at_place: row for row, pair_at_place in enumerate(CLASSES)}
    scores: dict[str, Any] = {"side": side}
    for objects, name in ((1, "one_object"), (2, "two_objects")):
        scenes = [make_scene(SEED, index, objects, "unseen") for index in range(number)]
        rows = [[row_of[item.place, item.colour, item.shape] for item in scene.objects] for scene in scenes]
        classes = mar.class_emb.weight.detach()[torch.tensor(rows)].sum(1)
        tokens = generate(mar, classes, grid, clip_x0, steps, torch.Generator().manual_seed(SEED))
        images = latent.decode(tokens.transpose(1, 2).reshape(number, -1, *grid)).clamp(-1, 1)
        pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        drawn = zip(scenes, pixels, strict=True)
        scores[name] = score_pictures([judge(wanted_of(scene), picture) for scene, picture in drawn]).report()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=MAR_FILE, help="holds or receives the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--measure", action="store_true", help="only measure the weights in the file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.measure:
        train(arguments.steps, arguments.file)
    for side in SIDES:
        print(json.dumps(measure(arguments.file, side)))


if __name__ == "__main__":
    main()
