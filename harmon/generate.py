"""Pictures from prompts: what `harmon generate` and the evaluation do."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harmon.drawing import draw_latents
from harmon.picture_files import PictureRecord, finished, save_animation, save_picture
from harmon.pictures import levels
from harmon.prompts import padded
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained
from pipelines.errors import ConfigurationError

PREVIEW_FRAMES = 24  # canvases of one --steps-preview at most; each costs a decoding


def draw_pictures(
    trained: Trained,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    px: int | None = None,
    batch: int = 32,
    *,
    size: tuple[int, int] | None = None,
    negatives: Sequence[str | None] | None = None,
    buckets: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> NDArray[np.uint8]:
    """One picture for each prompt, uint8 [n, H, W, 3] RGB of `size` (W, H), else of `px` a side, else as the
    last stage trained.

    A picture depends on its prompt, its negative prompt (None: the prompt without a caption), its seed, its
    size and `sampling` alone, not on the batch it is drawn in. `on_step` is told after each AR step of a
    batch how many are done, and the batch's latents so far.

    Raises:
        ConfigurationError: a size that the model cannot draw, or a prompt longer than it reads.
    """
    width, height = size or (px or trained.px,) * 2
    check_size(trained, width, height)
    against = negatives or [None] * len(prompts)
    drawn = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        ids, mask = _prompts(trained, prompts[part], against[part], sampling.cfg != 1)
        check_room(trained, ids.shape[1], width, height)
        stride = trained.autoencoder.stride
        latents = draw_latents(
            trained.model,
            ids,
            mask,
            (height // stride, width // stride),
            seeds[part],
            sampling.model_dump(),
            on_step,
            buckets,
        )
        drawn.append(decoded(trained, latents))
    return np.concatenate(drawn) if drawn else np.zeros((0, height, width, 3), np.uint8)


def decoded(trained: Trained, latents: Tensor) -> NDArray[np.uint8]:
    """Latents [B, C, h, w] as pictures uint8 [B, H, W, 3]."""
    with torch.no_grad():
        pixels: NDArray[np.uint8] = levels(trained.autoencoder.decode(latents)).cpu().numpy()
    return pixels


def generate_files(
    trained: Trained,
    records: Sequence[PictureRecord],
    folder: Path,
    *,
    batch: int = 8,
    buckets: bool = False,
    preview: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw each record into its own PNG below `folder`, whose metadata holds the record; the paths in order.

    A record that names no diffusion steps gets the model's. A picture that is already there is not drawn again.
    `preview` also writes the canvas after AR steps, as an animated WebP beside the picture. `on_progress` is told
    AR steps done and in all.

    Raises:
        ConfigurationError: a record asks for a size that the model cannot draw, its prompt is longer than the
            model reads, or it is of other weights or of another dtype.
    """
    records = [one.model_copy(update={"sampling": one.sampling.resolved(trained.model.config)}) for one in records]
    for record in records:
        if record.weights != trained.fingerprint:
            raise ConfigurationError(
                f"The picture {record.prompt!r} was drawn with other weights ({record.weights}, these are "
                f"{trained.fingerprint}); name the checkpoint that drew it."
            )
        if record.dtype != dtype_of(trained):
            raise ConfigurationError(
                f"The picture {record.prompt!r} is of a model in {record.dtype}, and this one runs in "
                f"{dtype_of(trained)}: give --dtype {record.dtype}."
            )
        check_size(trained, record.width, record.height)
        asked = (trained.text.generation_prompt(text) for text in (record.caption, record.negative))
        check_room(trained, max(map(len, asked)), record.width, record.height)
    folder.mkdir(parents=True, exist_ok=True)
    todo = [record for record in dict.fromkeys(records) if not finished(record, folder, preview)]
    batches = list(_batches(todo, batch))
    total, done = sum(one[0].sampling.ar_steps for one in batches), 0
    for some in batches:
        _draw_files(trained, some, folder, buckets, preview, _shifted(on_progress, done, total))
        done += some[0].sampling.ar_steps
        if on_progress:
            on_progress(done, total)
    return [folder / record.file_name for record in records]


def dtype_of(trained: Trained) -> str:
    """Name of the float type that the model runs in, as PictureRecord has it."""
    return str(trained.model.dtype).removeprefix("torch.")


def picture_size(trained: Trained, px: int | None, size: str | None, aspect: str | None) -> tuple[int, int]:
    """(width, height) in pixels: `size` as WIDTHxHEIGHT, or `aspect` as W:H with about px * px pixels, or a
    square of `px` (None: as the last stage trained).

    Raises:
        ConfigurationError: two of them contradict, one is not written so, or the model cannot draw that size.
    """
    side, unit = px or trained.px, _unit(trained)
    if size and (px or aspect):
        raise ConfigurationError("--size says width and height, so leave --px and --aspect out.")
    if size:
        width, height = _two_numbers(size, "x", "--size", "768x512")
    elif aspect:
        across, down = _two_numbers(aspect, ":", "--aspect", "3:2")
        width = max(1, round(side * math.sqrt(across / down) / unit)) * unit
        height = max(1, round(side * math.sqrt(down / across) / unit)) * unit
    else:
        width = height = side
    check_size(trained, width, height)
    return width, height


def contact_sheet(pictures: Sequence[Path], columns: int, gap: int = 4) -> Image.Image:
    """The pictures in rows of `columns`, each in a cell of the largest one's size, on white."""
    opened = [Image.open(path).convert("RGB") for path in pictures]
    width, height = (max(picture.size[side] for picture in opened) for side in (0, 1))
    rows = math.ceil(len(opened) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, picture in enumerate(opened):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def _batches(records: Sequence[PictureRecord], size: int) -> Iterator[Sequence[PictureRecord]]:
    """Neighbours that one call can draw: of one shape and one way of sampling, at most `size` of them."""
    for _, group in groupby(records, key=lambda record: (record.width, record.height, record.sampling)):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _draw_files(
    trained: Trained,
    records: Sequence[PictureRecord],
    folder: Path,
    buckets: bool,
    preview: bool,
    on_progress: Callable[[int], None],
) -> None:
    """Draw records of one size and sampling as one batch."""
    first = records[0]
    every = math.ceil(first.sampling.ar_steps / PREVIEW_FRAMES)
    frames: list[NDArray[np.uint8]] = []

    def step(done: int, latents: Tensor) -> None:
        if preview and (done % every == 0 or done == 1) and done < first.sampling.ar_steps:
            frames.append(decoded(trained, latents))
        on_progress(done)

    pixels = draw_pictures(
        trained,
        [record.caption for record in records],
        [record.seed for record in records],
        first.sampling,
        batch=len(records),
        size=(first.width, first.height),
        negatives=[record.negative for record in records],
        buckets=buckets,
        on_step=step,
    )
    for row, record in enumerate(records):
        if preview:
            save_animation([*(frame[row] for frame in frames), pixels[row]], folder / record.animation_name)
        save_picture(pixels[row], record, folder)


def _prompts(
    trained: Trained, prompts: Sequence[str], negatives: Sequence[str | None], guided: bool
) -> tuple[Tensor, Tensor]:
    asked = [trained.text.generation_prompt(prompt) for prompt in prompts]
    if guided:
        asked += [trained.text.generation_prompt(negative) for negative in negatives]
    return padded(asked, trained.text.pad, trained.model.device)


def _shifted(on_progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        if on_progress:
            on_progress(before + done, total)

    return report


def _unit(trained: Trained) -> int:
    """Pixels on a side of one token."""
    return trained.autoencoder.stride * trained.model.config.mar.patch_size


def check_size(trained: Trained, width: int, height: int) -> None:
    """Raises ConfigurationError for a size that the model cannot draw."""
    unit = _unit(trained)
    if width <= 0 or height <= 0 or width % unit or height % unit:
        shape = f"{width} px" if width == height else f"{width} x {height} px"
        raise ConfigurationError(f"A picture of {shape} cannot be drawn: choose a multiple of {unit} px.")
    check_room(trained, 0, width, height)


def check_room(trained: Trained, prompt: int, width: int, height: int) -> None:
    """Raises ConfigurationError where a prompt of so many tokens and a picture are more than the model reads."""
    config, unit = trained.model.config, _unit(trained)
    tokens = (width // unit) * (height // unit) + config.mar.buffer_size
    if prompt + tokens >= config.llm.max_position_embeddings:
        raise ConfigurationError(
            f"A picture of {width} x {height} px is {tokens} tokens, its longest prompt {prompt}, and the language "
            f"model reads {config.llm.max_position_embeddings}; ask for a smaller one, or in fewer words."
        )


def _two_numbers(text: str, between: str, option: str, example: str) -> tuple[int, int]:
    first, found, second = text.partition(between)
    if not found or not first.isdecimal() or not second.isdecimal() or int(first) == 0 or int(second) == 0:
        raise ConfigurationError(f"{option} {text}: write it as {example}.")
    return int(first), int(second)
