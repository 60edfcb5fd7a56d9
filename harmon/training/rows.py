"""Which rows of the training datasets serve a stage, and the row that sample number i of a task is.

A row serves where it is of the entry's task and sources, has a usable text, and a picture if it needs one. Column files
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
from numpy.typing import NDArray

from harmon.latents import latents_array, prove_latents
from harmon.training.mixture import Mixture, MixtureSource, TaskMixture
from harmon.training.stage import TASKS, StageConfig, Task
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError

PICTURE = "picture"  # the text of a mixture entry whose prompt is the picture itself


@dataclass(frozen=True)
class Place:
    """Where a sample lies."""

    dataset: str
    shard: int
    row: int
    key: str


@dataclass(frozen=True)
class Row:
    """What a sample is made of."""

    place: Place
    text: Any
    """A caption, a conversation as a list of {role, text}, or None where the prompt is the picture itself."""
    latents: NDArray[np.float16] | None
    """[C * h * w]; None for a text, or where pictures are decoded while training."""


@dataclass(frozen=True)
class _Shard:
    """What one mixture entry needs of one shard, row by row."""

    keys: list[str]
    texts: list[Any]
    latents: NDArray[np.float16] | None  # [rows, C * h * w]


class StageRows:
    """The rows of one stage. `latents` is the column group of its pictures; None: rows with a picture serve, decoded or
    not.

    `left_out` says, for each task, how many rows of each entry of its mixture have no usable text or no picture and so
    never come. Raises ConfigurationError where the mixture does not serve a task that the ratio asks for, or asks text
    of a kind that the task cannot use, and HarmonError where stored latents are not those of the pictures.
    """

    def __init__(self, stage: StageConfig, mixture: Mixture, latents: str | None) -> None:
        self.stage, self.mixture, self.latents = stage, mixture, latents
        self._datasets = {entry.dataset: Dataset(entry.dataset) for task in TASKS for entry in mixture.of(task)}
        self.left_out: dict[str, list[int]] = {}
        self._prove_latents()
        self._samples = {task: self._task_mixture(task) for task in TASKS if stage.ratio.of(task)}
        entries = sum(len(mixture.of(task)) for task in self._samples)
        self._shard = lru_cache(maxsize=2 * entries * stage.window_shards)(self._load)

    def row(self, task: Task, number: int) -> Row:
        """The row of sample `number` of `task`."""
        entry, shard_number, row = self._samples[task].locate(number)
        shard = self._shard(task, entry, shard_number)
        place = Place(self.mixture.of(task)[entry].dataset, shard_number, row, shard.keys[row])
        return Row(place, shard.texts[row], None if shard.latents is None else shard.latents[row])

    def epochs(self, task: Task, samples: int) -> list[float]:
        """Passes through each entry of `task` that its first `samples` samples make."""
        return self._samples[task].epochs(samples)

    def _prove_latents(self) -> None:
        pictured = [task for task in TASKS if task != "text" and self.stage.ratio.of(task)]
        for dataset in sorted({entry.dataset for task in pictured for entry in self.mixture.of(task)}):
            if self.latents is not None:
                prove_latents(self._datasets[dataset], self.latents, self.stage.px)

    def _task_mixture(self, task: Task) -> TaskMixture:
        entries = self.mixture.of(task)
        if not entries:
            raise ConfigurationError(f"{self.stage.stage} trains {task}, but its mixture names no dataset for {task}.")
        if task == "text2image" and any(entry.text == "conversation" for entry in entries):
            raise ConfigurationError(f"{self.stage.stage}: text2image needs captions; its mixture names conversations.")
        if task != "text2image" and any(entry.text == PICTURE for entry in entries):
            raise ConfigurationError(f"{self.stage.stage}: `text: {PICTURE}` serves text2image alone, not {task}.")
        found = [
            {shard: self._eligible(task, entry, shard) for shard in self._datasets[entry.dataset].shard_numbers}
            for entry in entries
        ]
        self.left_out[task] = [sum(left_out for _, left_out in shards.values()) for shards in found]
        eligible = [{shard: rows for shard, (rows, _) in shards.items()} for shards in found]
        return TaskMixture(self.stage, task, [entry.weight for entry in entries], eligible)

    def _eligible(self, task: Task, entry: MixtureSource, shard: int) -> tuple[NDArray[np.int64], int]:
        """Rows of `shard` that serve: of the entry's task and sources, with a usable text, and a picture if they
        need one. And how many of its task and sources do not.
        """
        dataset = self._datasets[entry.dataset]
        source = dataset.table("source", shard, ["task", "source", "ext"])
        named = pc.equal(source["task"], entry.rows)
        if entry.sources is not None:
            named = pc.and_(named, pc.is_in(source["source"], pa.array(entry.sources, source["source"].type)))
        keep = named
        if entry.text != PICTURE:
            texts = _texts(dataset, entry, shard)
            keep = pc.and_(named, have_pairs(texts) if entry.text == "conversation" else _filled(texts))
        if task != "text" and self.latents is not None:
            keep = pc.and_(keep, pc.is_valid(dataset.table(self.latents, shard, ["crop_box"])["crop_box"]))
        elif task != "text":
            keep = pc.and_(keep, pc.is_valid(source["ext"]))
        usable: NDArray[np.bool_] = pc.fill_null(keep, False).to_numpy()
        rows = np.flatnonzero(usable)
        return rows, (pc.sum(named).as_py() or 0) - len(rows)

    def _load(self, task: Task, entry: int, shard: int) -> _Shard:
        source = self.mixture.of(task)[entry]
        dataset = self._datasets[source.dataset]
        keys = dataset.table("source", shard, ["key"])["key"].to_pylist()
        texts = [None] * len(keys) if source.text == PICTURE else _texts(dataset, source, shard).to_pylist()
        if task == "text" or self.latents is None:
            return _Shard(keys, texts, None)
        columns = dataset.table(self.latents, shard, ["crop", "padded"])
        latents = latents_array(columns["crop"])
        if task == "image2text":  # the whole picture; a square one has no padded latents of its own
            padded = columns["padded"].is_valid().to_numpy()
            latents[padded] = latents_array(columns["padded"])[padded]
        return _Shard(keys, texts, latents)


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
