"""Tensors of a worker's share of each block.

Pictures come as the latents that `harmon.latents` stored, or, where none are stored, decoded from the image shards by
other processes and encoded here. A picture that proves corrupt is left out of its batch, in which each row's loss
stands alone: its sample keeps its place with weight 0, is recorded, and nothing comes instead.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from harmon.model.config import HarmonConfig
from harmon.text import DESCRIBE_QUESTIONS, IGNORED, IMAGE_SLOT, RECONSTRUCT_REQUESTS, Chat, ChatText
from harmon.training.decoding import Online
from harmon.training.draws import chat_generator, draw_images, drawn_request, masked_positions
from harmon.training.encoding import OnlineLatents
from harmon.training.memory import Lengths
from harmon.training.mixture import Block, Mixture
from harmon.training.row import Row
from harmon.training.rows import StageRows, pairs_of
from harmon.training.stage import TASKS, StageConfig, Task
from pipelines.errors import ConfigurationError, HarmonError


@dataclass(frozen=True)
class ImageBatch:
    """A worker's rows of one text-to-image block; shapes as `Harmon.text_to_image_loss` takes them."""

    latents: Tensor  # [B, C, h, w] float32
    text_ids: Tensor  # [B, L] int64, right padded; image slots inside where the picture itself is the prompt
    text_mask: Tensor  # [B, L] bool
    order: Tensor  # [B, N] int64
    masked: int
    timesteps: Tensor  # [R, B, N] int64
    noise: Tensor  # [R, B, N, token channels] float32
    pictured: bool = False  # whether the mixture has prompts that are the picture: equal on all workers
    lines: Tensor | None = None  # [B] int64: which of the task's losses each row counts to (Mixture.lines)

    @property
    def count(self) -> int:
        """Masked positions."""
        return len(self.latents) * self.masked

    @property
    def counts(self) -> Tensor:
        """Masked positions of each row, [B] float64."""
        return torch.full((len(self.latents),), self.masked, dtype=torch.float64)


@dataclass(frozen=True)
class ChatBatch:
    """A worker's rows of one text or image-to-text block; shapes as `Harmon.image_to_text_loss` takes
    them.
    """

    latents: Tensor | None  # [B, C, h, w] float32; None: text only
    input_ids: Tensor  # [B, L] int64, right padded, image slots inside
    labels: Tensor  # [B, L] int64, IGNORED at padding
    lines: Tensor | None = None  # [B] int64: which of the task's losses each row counts to (Mixture.lines)

    @property
    def count(self) -> int:
        """Labelled tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def counts(self) -> Tensor:
        """Labelled tokens of each row, [B] float64."""
        return (self.labels != IGNORED).sum(1, dtype=torch.float64)


class StageData:
    """The samples of one stage.

    `latents` is the column group of the stage's pictures, or how they are decoded and encoded while training; `kept`
    and `understanding` as in `StageRows`. Raises ConfigurationError as `StageRows` does.
    """

    def __init__(
        self,
        stage: StageConfig,
        mixture: Mixture,
        model: HarmonConfig,
        text: ChatText,
        latents: str | Online,
        kept: Path | None = None,
        understanding: str | None = None,
    ) -> None:
        if not isinstance(latents, str) and model.understanding_encoder in ("siglip", "vqgan"):
            raise ConfigurationError(
                f"{stage.stage}: what {model.understanding_encoder} sees of pictures is not made while training; "
                "write it before with `harmon latents` and name the groups."
            )
        self.stage, self.mixture, self.model, self.text = stage, mixture, model, text
        self.side = stage.px // model.latent_stride
        self.tokens = model.tokens(self.side, self.side)
        stored = latents if isinstance(latents, str) else None
        self.rows = StageRows(stage, mixture, stored, kept, understanding=understanding)
        self.rows.keep_first()
        self._online = None if isinstance(latents, str) else OnlineLatents(stage, latents, self.rows)
        self._left: Counter[tuple[Task, int]] = Counter()  # pictures of the steps that proved corrupt, by loss line

    @property
    def left_out(self) -> dict[str, list[int]]:
        """For each task, how many rows of each entry of its mixture never come; see `StageRows`."""
        return self.rows.left_out

    @property
    def rejected(self) -> dict[str, dict[str, int]]:
        """For each task, how many pictures proved corrupt so far, by reason."""
        return {} if self._online is None else {task: dict(found) for task, found in self._online.rejected.items()}

    def batch(self, block: Block, rank: int, world: int) -> ImageBatch | ChatBatch | None:
        """The share of `block` that worker `rank` of `world` takes; None where the block is smaller than the
        world, or no picture of the share can be decoded.
        """
        numbers = block.share(rank, world)
        if self._online is not None:
            self._online.ask_ahead(block, rank, world)
        if not numbers:
            return None
        made = self.images(block, numbers) if block.task == "text2image" else self.chats(block.task, numbers)
        if self._online is not None and block.task != "text":
            self._left.update((block.task, line) for line in self._online.left)
        return made

    def rejected_since(self, device: torch.device) -> dict[Task, dict[str, int]]:
        """For each task, how many samples of each source had no picture since this was last asked, over all workers,
        who ask together, on `device`; sources without any are left out.
        """
        if self._online is None:
            return {}
        names = [(task, line, name) for task in TASKS for line, name in enumerate(self.mixture.lines(task))]
        counts = torch.tensor([self._left[task, line] for task, line, _ in names], device=device)
        if dist.is_initialized():
            dist.all_reduce(counts)
        self._left.clear()
        told: dict[Task, dict[str, int]] = {}
        for (task, _, name), count in zip(names, counts.tolist(), strict=True):
            if count:
                told.setdefault(task, {})[name] = count
        return told

    def images(self, block: Block, numbers: Sequence[int]) -> ImageBatch | None:
        """Text-to-image samples `numbers`, which lie in `block` and share its mask ratio."""
        numbers, rows, latents = self._pictured("text2image", numbers)
        if not numbers:
            return None
        channels, repeats = self.model.mar.token_channels, self.model.head.batch_mul
        draws = draw_images(self.stage, numbers, self.tokens, channels, repeats)
        prompts = [
            self._prompt(number, row, bool(dropped))
            for number, row, dropped in zip(numbers, rows, draws.dropped, strict=True)
        ]
        ids, mask = _padded(prompts, self.text.pad)
        return ImageBatch(
            latents=latents,
            text_ids=ids,
            text_mask=mask,
            order=torch.from_numpy(draws.order),
            masked=masked_positions(self.stage, block.start, self.tokens),
            timesteps=torch.from_numpy(draws.timesteps),
            noise=torch.from_numpy(draws.noise),
            pictured=self.mixture.pictured,
            lines=torch.tensor([row.line for row in rows]),
        )

    def chats(self, task: Task, numbers: Sequence[int]) -> ChatBatch | None:
        """Text or image-to-text samples `numbers`."""
        latents = None
        if task == "image2text":
            numbers, rows, latents = self._pictured(task, numbers)
            if not numbers:
                return None
        else:
            rows = [self.rows.row(task, number) for number in numbers]
        chats = [self._chat(task, number, row.text) for number, row in zip(numbers, rows, strict=True)]
        ids, _ = _padded([chat.ids for chat in chats], self.text.pad)
        labels, _ = _padded([chat.labels for chat in chats], IGNORED)
        return ChatBatch(latents, ids, labels, torch.tensor([row.line for row in rows]))

    def epochs(self, cursors: Mapping[Task, int]) -> dict[Task, dict[str, float]]:
        """Passes through each entry of each task, by name, that the samples before these cursors make."""
        return {
            task: dict(zip(self.mixture.names(task), self.rows.epochs(task, samples), strict=True))
            for task, samples in cursors.items()
            if self.stage.ratio.of(task)
        }

    def lengths(self, samples: int = 64) -> Lengths:
        """Mean text lengths of the first `samples` of each task, image slots not counted; no picture is looked at."""
        found = Lengths()
        for task in (task for task in TASKS if self.stage.ratio.of(task)):
            rows = [(number, self.rows.row(task, number)) for number in range(samples)]
            if task == "text2image":
                prompts = [self._prompt(number, row, dropped=False) for number, row in rows]
                words = round(fmean(sum(token != IMAGE_SLOT for token in prompt) for prompt in prompts))
                found = replace(found, prompt=words, picture=self.mixture.pictured)
                continue
            slots = self.slots if task == "image2text" else 0
            chats = [self._chat(task, number, row.text) for number, row in rows]
            whole = round(fmean(len(chat.ids) - slots for chat in chats))
            labelled = round(fmean(sum(label != IGNORED for label in chat.labels) for chat in chats))
            if task == "image2text":
                found = replace(found, question=whole - labelled, labelled=labelled)
            else:
                found = replace(found, text=whole)
        return found

    def close(self) -> None:
        """End the threads that read ahead, and the decoding processes, where there are any; all end with this process
        too.
        """
        self.rows.close()
        if self._online is not None:
            self._online.close()

    @property
    def slots(self) -> int:
        """Image slots of a prompt that holds a picture."""
        return self.model.slots(self.side, self.side)

    def _prompt(self, number: int, row: Row, dropped: bool) -> list[int]:
        if dropped or row.text is not None:
            return self.text.generation_prompt(None if dropped else row.text, self.stage.prompt_tokens)
        request = RECONSTRUCT_REQUESTS[drawn_request(self.stage, number, len(RECONSTRUCT_REQUESTS))]
        return self.text.question_prompt(request, self.slots, self.stage.prompt_tokens)

    def _chat(self, task: Task, number: int, text: Any) -> Chat:
        slots = self.slots if task == "image2text" else 0
        generator = chat_generator(self.stage, task, number)
        if isinstance(text, str):
            question = DESCRIBE_QUESTIONS[int(generator.integers(len(DESCRIBE_QUESTIONS)))]
            return self.text.encode_pair(question, text, slots, self.stage.chat_tokens)
        pairs = pairs_of(text)
        if self.stage.turns is not None:
            drawn = generator.permutation(len(pairs))[: self.stage.turns]
            pairs = [pairs[int(place)] for place in drawn]
        return self.text.chat(pairs, slots, self.stage.chat_tokens)

    def _pictured(self, task: Task, numbers: Sequence[int]) -> tuple[Sequence[int], list[Row], Tensor]:
        """Samples whose picture is there, their rows, and their latents [B, C, h, w] float32."""
        if self._online is not None:
            numbers, latents = self._online.latents(task, numbers)
            return numbers, [self.rows.row(task, number) for number in numbers], latents
        rows = [self.rows.row(task, number) for number in numbers]
        return numbers, rows, self._stored(task, [row.latents for row in rows])

    def _stored(self, task: Task, latents: Sequence[NDArray[np.float16] | None]) -> Tensor:
        flat = np.stack([row for row in latents if row is not None]).astype(np.float32)
        channels, side = self.model.mar.latent_channels, self.side
        if task == "image2text":
            channels = self.model.understanding_channels or channels
            side = self.model.understanding_grid or side
        if flat.shape[1] != channels * side * side:
            raise HarmonError(
                f"{self.stage.stage}, {task}: a stored picture has {flat.shape[1]} values, and the model takes "
                f"{channels} x {side} x {side}; name the encoder that the model was made for."
            )
        return torch.from_numpy(flat).view(len(flat), channels, side, side)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as [B, longest] int64, filled on the right, and which places are real."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, filler, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)
