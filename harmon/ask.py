"""Answers to questions about pictures: what `harmon ask` and the evaluation do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tokenizers.decoders import DecodeStream
from torch import Tensor

from harmon.answering import AnswerConfig, answer, speak
from harmon.pictures import padded_square
from harmon.prompts import padded
from harmon.trained import Trained
from pipelines.errors import ConfigurationError

SHORT = AnswerConfig(max_new_tokens=64)


def answer_questions(
    trained: Trained,
    pictures: Sequence[Image.Image] | None,
    questions: Sequence[str],
    px: int | None = None,
    config: AnswerConfig = SHORT,
    batch: int = 64,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """The answer to each question about the RGB picture beside it, drawn (if not greedy) with the seed beside
    it, 0 where `seeds` is None.

    Pictures are padded with grey to a square and resized to `px` (None: as the last stage trained), as for
    training; without any, the questions are asked alone. An answer does not depend on the others.
    """
    side = side_of(trained, px)
    slots = 0 if pictures is None else trained.slots(side)
    answers: list[str] = []
    for start in range(0, len(questions), batch):
        part = slice(start, start + batch)
        prompts = [trained.text.question_prompt(question, slots) for question in questions[part]]
        for prompt in prompts:
            _check_room(trained, len(prompt), config)
        ids, mask = padded(prompts, trained.text.pad, trained.model.device)
        spoken = answer(
            trained.model,
            None if pictures is None else encoded(trained, pictures[part], side),
            ids,
            mask,
            config,
            seeds=None if seeds is None else seeds[part],
            eos_ids=(trained.text.eos,),
        )
        answers += [trained.text.decode(tokens) for tokens in spoken]
    return answers


@dataclass
class Conversation:
    """Questions about one picture, each asked with all that was said before in view.

    `latents` [1, C, h, w] are the picture's, and `slots` the image slots they fill in the first question.
    """

    trained: Trained
    latents: Tensor
    slots: int
    said: list[int] = field(default_factory=list)
    """Token ids of all turns so far, answers closed."""

    @classmethod
    def about(cls, trained: Trained, picture: Image.Image, px: int | None = None) -> "Conversation":
        """A conversation about an RGB picture, which is prepared as `answer_questions` does."""
        side = side_of(trained, px)
        return cls(trained, encoded(trained, [picture], side), trained.slots(side))

    def ask(self, question: str, config: AnswerConfig, seed: int = 0) -> Iterator[str]:
        """The answer, piece by piece as it is spoken; it counts as said once the iterator has ended.

        Raises:
            ConfigurationError: the conversation has become too long for the model.
        """
        text = self.trained.text
        turn = (
            [*text.newline, *text.question_prompt(question, 0)]
            if self.said
            else text.question_prompt(question, self.slots)
        )
        prompt = [*self.said, *turn]
        _check_room(self.trained, len(prompt), config)
        ids, mask = padded([prompt], text.pad, self.trained.model.device)
        stream = DecodeStream(skip_special_tokens=True)
        answered: list[int] = []
        spoken = speak(self.trained.model, self.latents, ids, mask, config, seeds=[seed], eos_ids=(text.eos,))
        for (token,) in spoken:
            assert token is not None  # a batch of one ends with its only answer
            answered.append(token)
            piece = stream.step(text.tokenizer, token)
            if piece:
                yield piece
        self.said = [*prompt, *answered, text.eos]


def read_picture(file: Path) -> Image.Image:
    """The picture in `file`, RGB. Raises ConfigurationError where it is none."""
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigurationError(f"{file} cannot be read as a picture ({error}); name a PNG or JPEG file.") from None


def encoded(trained: Trained, pictures: Sequence[Image.Image], side: int) -> Tensor:
    """What the model is shown of RGB pictures, prepared as `answer_questions` says: [B, C, h, w] float32."""
    pixels = torch.from_numpy(np.stack([padded_square(picture, side) for picture in pictures]))
    with torch.no_grad():
        return trained.seen(pixels.to(trained.model.device))


def side_of(trained: Trained, px: int | None) -> int:
    """`px`, or that of the last stage. Raises ConfigurationError where the model reads no such side."""
    side = px or trained.px
    unit = trained.autoencoder.stride * trained.model.config.mar.patch_size
    if side <= 0 or side % unit:
        raise ConfigurationError(f"A picture cannot be read at {side} px: choose a multiple of {unit} px.")
    return side


def _check_room(trained: Trained, tokens: int, config: AnswerConfig) -> None:
    room = trained.model.config.llm.max_position_embeddings
    if tokens + config.max_new_tokens > room:
        raise ConfigurationError(
            f"A prompt of {tokens} tokens and an answer of up to {config.max_new_tokens} exceed the {room} that the "
            "model reads; ask less, allow fewer new tokens, or show the picture at fewer px."
        )
