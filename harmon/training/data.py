"""Tensors of a worker's share of each block, read from the columns of training datasets.

Pictures come as the latents that `harmon.latents` stored, so nothing is decoded while training. Column files
of the shards in use are kept in memory, as many as the shuffle window needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from harmon.latents import latents_array
from harmon.model.config import HarmonConfig
from harmon.text import DESCRIBE_QUESTIONS, IGNORED, Chat, ChatText
from harmon.training.draws import chat_generator, draw_images, masked_positions
from harmon.training.mixture import Block, Mixture, MixtureSource, TaskMixture
from harmon.training.stage import TASKS, StageConfig, Task
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError


@dataclass(frozen=True)
class ImageBatch:
    """A worker's rows of one text-to-image block; shapes as `Harmon.text_to_image_loss` takes them."""

    latents: Tensor  # [B, C, h, w] float32
    text_ids: Tensor  # [B, L] int64, right padded
    text_mask: Tensor  # [B, L] bool
    order: Tensor  # [B, N] int64
    masked: int
    timesteps: Tensor  # [R, B, N] int64
    noise: Tensor  # [R, B, N, token channels] float32

    @property
    def count(self) -> int:
        """Masked positions."""
        return len(self.latents) * self.masked


@dataclass(frozen=True)
class ChatBatch:
    """A worker's rows of one text or image-to-text block; shapes as `Harmon.image_to_text_loss` takes
    them.
    """

    latents: Tensor | None  # [B, C, h, w] float32; None: text only
    input_ids: Tensor  # [B, L] int64, right padded, image slots inside
    labels: Tensor  # [B, L] int64, IGNORED at padding

    @property
    def count(self) -> int:
        """Labelled tokens."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class _Shard:
    """What one mixture entry needs of one shard, row by row."""

    texts: list[Any]  # a caption, or a conversation as a list of {role, text}
    latents: NDArray[np.float16] | None  # [rows, C * h * w]


class StageData:
    """The samples of one stage.

    `latents` is the column group of the stage's pictures. `left_out` says, for each task, how many rows of each entry
    of its mixture have no usable text or no latents and so never come. Raises ConfigurationError where the mixture does
    not serve a task that the ratio asks for, or asks text of a kind that the task cannot use.
    """

    def __init__(self, stage: StageConfig, mixture: Mixture, model: HarmonConfig, text: ChatText, latents: str) -> None:
        self.stage, self.mixture, self.model, self.text, self.latents = stage, mixture, model, text, latents
        self.side = stage.px // model.latent_stride
        self.tokens = model.tokens(self.side, self.side)
        self._datasets = {entry.dataset: Dataset(entry.dataset) for task in TASKS for entry in mixture.of(task)}
        self.left_out: dict[str, list[int]] = {}
        self._samples = {task: self._task_mixture(task) for task in TASKS if stage.ratio.of(task)}
        entries = sum(len(mixture.of(task)) for task in self._samples)
        self._shard = lru_cache(maxsize=2 * entries * stage.window_shards)(self._load)

    def batch(self, block: Block, rank: int, world: int) -> ImageBatch | ChatBatch | None:
        """The share of `block` that worker `rank` of `world` takes; None where the block is smaller than the
        world.
        """
        numbers = block.share(rank, world)
        if not numbers:
            return None
        return self.images(block, numbers) if block.task == "text2image" else self.chats(block.task, numbers)

    def images(self, block: Block, numbers: range) -> ImageBatch:
        """Text-to-image samples `numbers`, which lie in `block` and share its mask ratio."""
        rows = [self._row("text2image", number) for number in numbers]
        channels, repeats = self.model.mar.token_channels, self.model.head.batch_mul
        draws = draw_images(self.stage, numbers, self.tokens, channels, repeats)
        prompts = [
            self.text.generation_prompt(None if dropped else caption, self.stage.prompt_tokens)
            for (caption, _), dropped in zip(rows, draws.dropped, strict=True)
        ]
        ids, mask = _padded(prompts, self.text.pad)
        return ImageBatch(
            latents=self._pictures([latents for _, latents in rows]),
            text_ids=ids,
            text_mask=mask,
            order=torch.from_numpy(draws.order),
            masked=masked_positions(self.stage, block.start, self.tokens),
            timesteps=torch.from_numpy(draws.timesteps),
            noise=torch.from_numpy(draws.noise),
        )

    def chats(self, task: Task, numbers: range) -> ChatBatch:
        """Text or image-to-text samples `numbers`."""
        rows = [self._row(task, number) for number in numbers]
        pictured = task == "image2text"
        slots = self.tokens + self.model.mar.buffer_size if pictured else 0
        chats = [self._chat(task, number, text, slots) for number, (text, _) in zip(numbers, rows, strict=True)]
        ids, _ = _padded([chat.ids for chat in chats], self.text.pad)
        labels, _ = _padded([chat.labels for chat in chats], IGNORED)
        return ChatBatch(self._pictures([latents for _, latents in rows]) if pictured else None, ids, labels)

    def epochs(self, task: Task, samples: int) -> list[float]:
        """Passes through each entry of `task` that its first `samples` samples make."""
        return self._samples[task].epochs(samples)

    def _chat(self, task: Task, number: int, text: Any, slots: int) -> Chat:
        generator = chat_generator(self.stage, task, number)
        if isinstance(text, str):
            question = DESCRIBE_QUESTIONS[int(generator.integers(len(DESCRIBE_QUESTIONS)))]
            return self.text.encode_pair(question, text, slots, self.stage.chat_tokens)
        pairs = pairs_of(text)
        if self.stage.turns is not None:
            drawn = generator.permutation(len(pairs))[: self.stage.turns]
            pairs = [pairs[int(place)] for place in drawn]
        return self.text.chat(pairs, slots, self.stage.chat_tokens)

    def _pictures(self, latents: Sequence[NDArray[np.float16] | None]) -> Tensor:
        flat = np.stack([row for row in latents if row is not None]).astype(np.float32)
        return torch.from_numpy(flat).view(len(flat), self.model.mar.latent_channels, self.side, self.side)

    def _row(self, task: Task, number: int) -> tuple[Any, NDArray[np.float16] | None]:
        entry, shard_number, row = self._samples[task].locate(number)
        shard = self._shard(task, entry, shard_number)
        return shard.texts[row], None if shard.latents is None else shard.latents[row]

    def _task_mixture(self, task: Task) -> TaskMixture:
        entries = self.mixture.of(task)
        if not entries:
            raise ConfigurationError(f"{self.stage.stage} trains {task}, but its mixture names no dataset for {task}.")
        if task == "text2image" and any(entry.text == "conversation" for entry in entries):
            raise ConfigurationError(f"{self.stage.stage}: text2image needs captions; its mixture names conversations.")
        found = [
            {shard: self._eligible(task, entry, shard) for shard in self._datasets[entry.dataset].shard_numbers}
            for entry in entries
        ]
        self.left_out[task] = [sum(left_out for _, left_out in shards.values()) for shards in found]
        eligible = [{shard: rows for shard, (rows, _) in shards.items()} for shards in found]
        return TaskMixture(self.stage, task, [entry.weight for entry in entries], eligible)

    def _eligible(self, task: Task, entry: MixtureSource, shard: int) -> tuple[NDArray[np.int64], int]:
        """Rows of `shard` that serve: of the entry's task and sources, with a usable text, and latents if it
        needs them. And how many of its task and sources do not.
        """
        dataset = self._datasets[entry.dataset]
        source = dataset.table("source", shard, ["task", "source"])
        named = pc.equal(source["task"], entry.rows)
        if entry.sources is not None:
            named = pc.and_(named, pc.is_in(source["source"], pa.array(entry.sources, source["source"].type)))
        texts = _texts(dataset, entry, shard)
        keep = pc.and_(named, have_pairs(texts) if entry.text == "conversation" else _filled(texts))
        if task != "text":
            keep = pc.and_(keep, pc.is_valid(dataset.table(self.latents, shard, ["crop_box"])["crop_box"]))
        usable: NDArray[np.bool_] = pc.fill_null(keep, False).to_numpy()
        rows = np.flatnonzero(usable)
        return rows, (pc.sum(named).as_py() or 0) - len(rows)

    def _load(self, task: Task, entry: int, shard: int) -> _Shard:
        source = self.mixture.of(task)[entry]
        dataset = self._datasets[source.dataset]
        texts = _texts(dataset, source, shard).to_pylist()
        if task == "text":
            return _Shard(texts, None)
        columns = dataset.table(self.latents, shard, ["crop", "padded"])
        latents = latents_array(columns["crop"])
        if task == "image2text":  # the whole picture; a square one has no padded latents of its own
            padded = columns["padded"].is_valid().to_numpy()
            latents[padded] = latents_array(columns["padded"])[padded]
        return _Shard(texts, latents)


def pairs_of(conversation: Sequence[dict[str, str | None] | None]) -> list[tuple[str, str]]:
    """(question, answer) of each user turn that an assistant turn follows, where both have a text."""
    return [
        (question, answer)
        for asked, told in pairwise(conversation)
        if asked and told and asked["role"] == "user" and told["role"] == "assistant"
        if (question := asked["text"]) and (answer := told["text"])
    ]


def have_pairs(conversations: pa.ChunkedArray) -> pa.Array:
    """Which rows have any of `pairs_of` (bool), found in whole columns: a stage may have millions of rows."""
    rows = conversations.combine_chunks()
    turns, row_of = pc.list_flatten(rows), pc.list_parent_indices(rows).to_numpy()
    filled = _filled(pc.struct_field(turns, "text"))
    asked, told = (
        pc.and_(pc.equal(pc.struct_field(turns, "role"), role), filled).fill_null(False).to_numpy(zero_copy_only=False)
        for role in ("user", "assistant")
    )
    found = np.zeros(len(rows), dtype=np.bool_)
    found[row_of[:-1][asked[:-1] & told[1:] & (row_of[:-1] == row_of[1:])]] = True
    return pa.array(found)


def _filled(texts: pa.Array | pa.ChunkedArray) -> Any:
    """Which texts are neither null nor empty."""
    return pc.fill_null(pc.greater(pc.utf8_length(texts), 0), False)


def _texts(dataset: Dataset, entry: MixtureSource, shard: int) -> pa.ChunkedArray:
    if entry.text.startswith("caption."):
        return dataset.table(entry.text, shard, ["text"])["text"]
    column = "caption" if entry.text == "caption" else "conversations"
    return dataset.table("source", shard, [column])[column]


def _padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal length as [B, longest] int64, filled on the right, and which places are real."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, filler, dtype=np.int64)
    ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)
