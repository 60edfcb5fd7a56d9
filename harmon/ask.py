"""Answers to questions about pictures: what `harmon ask` and the evaluation do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from harmon.latents import padded_square
from harmon.sampling import answer
from harmon.trained import Trained, load_run, padded
from pipelines.errors import ConfigurationError


def answer_questions(
    trained: Trained,
    pictures: Sequence[Image.Image],
    questions: Sequence[str],
    px: int | None = None,
    max_new_tokens: int = 64,
    batch: int = 64,
) -> list[str]:
    """The greedy answer to each question about the RGB picture beside it.

    Pictures are padded with grey to a square and resized to `px` (None: as the last stage trained), as for
    training.
    """
    side = px or trained.px
    answers: list[str] = []
    for start in range(0, len(questions), batch):
        shown, asked = pictures[start : start + batch], questions[start : start + batch]
        pixels = torch.from_numpy(np.stack([padded_square(picture, side) for picture in shown]))
        prompts = [trained.text.question_prompt(question, trained.slots(side)) for question in asked]
        ids, mask = padded(prompts, trained.text.pad, trained.model.device)
        with torch.no_grad():
            latents = trained.autoencoder.encode(pixels.to(trained.model.device))
        spoken = answer(trained.model, latents, ids, mask, max_new_tokens=max_new_tokens, eos_ids=(trained.text.eos,))
        answers += [trained.text.decode(tokens) for tokens in spoken]
    return answers


def ask_file(image: Path, question: str, checkpoint: Path, max_new_tokens: int = 256, device: str = "cpu") -> str:
    """The answer of the run folder `checkpoint` to one question about the picture in file `image`.

    Raises:
        ConfigurationError: no checkpoint there, or `image` is no picture.
    """
    try:
        with Image.open(image) as opened:
            picture = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigurationError(f"{image} cannot be read as a picture ({error}); name a PNG or JPEG file.") from None
    return answer_questions(load_run(checkpoint, device), [picture], [question], None, max_new_tokens)[0]
