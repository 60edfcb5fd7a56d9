"""Which rows of the training datasets serve a stage, and the row that sample number i of a task is.

A row serves where it is of the entry's task and sources, has a usable text, and a picture if it needs one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmon.latents import prove_latents
from harmon.training.eligible import Criterion, Fact, RowBits, find_serving
from harmon.training.mixture import Mixture, MixtureSource, TaskMixture, drawn_weights
from harmon.training.stage import TASKS, StageConfig, Task
from harmon.training.window import Columns, OpenShard, OpenShards
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE

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
    entry: int
    """Which entry of the task's mixture it is of."""
    text: Any
    """A caption, a conversation as a list of {role, text}, or None where the prompt is the picture itself."""
    latents: NDArray[np.float16] | None
    """[C * h * w]; None for a text, or where pictures are decoded while training."""


class StageRows:
    """The rows of one stage. `latents` is the column group of its pictures; None: rows with a picture serve, decoded or
    not. `understanding` is that of pictures that are asked about, where it is another.

    `kept` is the folder in which what serves is kept from start to start (`find_serving`); None: it is looked up anew.
    `left_out` says, for each task, how many rows of each entry of its mixture have no usable text or no picture and so
    never come. Raises ConfigurationError where the mixture does not serve a task that the ratio asks for, or asks text
    of a kind that the task cannot use, and HarmonError where stored latents are not those of the pictures. Workers of a
    torch.distributed group make theirs together.
    """

    def __init__(
        self,
        stage: StageConfig,
        mixture: Mixture,
        latents: str | None,
        kept: Path | None = None,
        keeps: bool = True,
        understanding: str | None = None,
    ) -> None:
        self.stage, self.mixture, self.latents = stage, mixture, latents
        seen = understanding or latents
        self._groups: dict[Task, str | None] = {"text": None, "image2text": seen, "text2image": latents}
        self._datasets = {entry.dataset: Dataset(entry.dataset) for task in TASKS for entry in mixture.of(task)}
        self.left_out: dict[str, list[int]] = {}
        self._serving: dict[tuple[Task, int], Mapping[int, RowBits]] = {}
        self._tasks = [task for task in TASKS if stage.ratio.of(task)]
        for task in self._tasks:
            self._check(task)
        self._prove_latents()
        self._samples = self._task_mixtures(kept, keeps)
        self._open: OpenShards[tuple[Task, int, int]] = OpenShards(self._open_shard)
        self._reached: dict[tuple[Task, int], tuple[int, int, int]] = {}

    def row(self, task: Task, number: int) -> Row:
        """The row of sample `number` of `task`. The next shards of its shuffle's window are opened meanwhile."""
        samples = self._samples[task]
        entry, shard_number, place = samples.place(number)
        shard = self._open.get((task, entry, shard_number))
        self._read_ahead(task, number)
        at = Place(
            dataset=self.mixture.of(task)[entry].dataset,
            shard=shard_number,
            row=self._serving[task, entry][shard_number][place],
            key=shard.texts["key"][place].as_py(),
        )
        text = shard.texts["text"][place].as_py() if "text" in shard.texts.column_names else None
        return Row(at, entry, text, None if shard.latents is None else shard.latents[place])

    def epochs(self, task: Task, samples: int) -> list[float]:
        """Passes through each entry of `task` that its first `samples` samples make."""
        return self._samples[task].epochs(samples)

    def close(self) -> None:
        """Open no more shards."""
        self._open.close()

    def _prove_latents(self) -> None:
        used = {(entry.dataset, self._groups[task]) for task in self._tasks for entry in self.mixture.of(task)}
        for dataset, group in sorted((dataset, group) for dataset, group in used if group is not None):
            prove_latents(self._datasets[dataset], group, self.stage.px)

    def _check(self, task: Task) -> None:
        entries = self.mixture.of(task)
        if not entries:
            raise ConfigurationError(f"{self.stage.stage} trains {task}, but its mixture names no dataset for {task}.")
        if task == "text2image" and any(entry.text == "conversation" for entry in entries):
            raise ConfigurationError(f"{self.stage.stage}: text2image needs captions; its mixture names conversations.")
        if task != "text2image" and any(entry.text == PICTURE for entry in entries):
            raise ConfigurationError(f"{self.stage.stage}: `text: {PICTURE}` serves text2image alone, not {task}.")

    def _task_mixtures(self, kept: Path | None, keeps: bool) -> dict[Task, TaskMixture]:
        asked = [(task, entry) for task in self._tasks for entry in self.mixture.of(task)]
        criteria = [(entry.dataset, self._criterion(task, entry)) for task, entry in asked]
        found = iter(find_serving(self._datasets, criteria, kept, keeps))
        mixtures = {}
        for task in self._tasks:
            entries = self.mixture.of(task)
            serving = [next(found) for _ in entries]
            self.left_out[task] = [one.left_out for one in serving]
            self._serving |= {(task, entry): one.shards for entry, one in enumerate(serving)}
            counts = [sum(len(rows) for rows in one.shards.values()) for one in serving]
            weights = drawn_weights(self.stage, task, entries, counts)
            mixtures[task] = TaskMixture(self.stage, task, weights, [one.shards for one in serving])
        return mixtures

    def _criterion(self, task: Task, entry: MixtureSource) -> Criterion:
        """Rows of the entry's task and sources, with a usable text, and a picture if they need one."""
        named = [Fact(SOURCE, "task", (entry.rows,))]
        if entry.sources is not None:
            named.append(Fact(SOURCE, "source", entry.sources))
        usable = [Fact(*where)] if (where := _text_of(entry)) else []
        if task != "text":
            latents = self._groups[task]
            usable.append(Fact(SOURCE, "ext") if latents is None else Fact(latents, "crop_box"))
        return Criterion(tuple(named), tuple(usable))

    def _open_shard(self, key: tuple[Task, int, int]) -> OpenShard:
        task, entry, shard = key
        named = self.mixture.of(task)[entry]
        group, column = _text_of(named) or (SOURCE, None)
        columns = Columns(group, column, self._groups[task], padded=task == "image2text")
        return columns.open(self._datasets[named.dataset], shard, self._serving[task, entry][shard])

    def _read_ahead(self, task: Task, number: int) -> None:
        entry, reach = self._samples[task].reach(number)
        if self._reached.get((task, entry)) != reach:
            self._reached[task, entry] = reach
            shards = self._samples[task].shards_within(entry, reach)
            self._open.read_ahead((task, entry, shard) for shard in shards)


def pairs_of(conversation: Sequence[dict[str, str | None] | None]) -> list[tuple[str, str]]:
    """(question, answer) of each user turn that an assistant turn follows, where both have a text."""
    return [
        (question, answer)
        for asked, told in pairwise(conversation)
        if asked and told and asked["role"] == "user" and told["role"] == "assistant"
        if (question := asked["text"]) and (answer := told["text"])
    ]


def _text_of(entry: MixtureSource) -> tuple[str, str] | None:
    """Group and column of the entry's text; None where its prompt is the picture itself."""
    if entry.text == PICTURE:
        return None
    if entry.text.startswith("caption."):
        return entry.text, "text"
    return SOURCE, "caption" if entry.text == "caption" else "conversations"
