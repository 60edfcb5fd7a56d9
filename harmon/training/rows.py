"""Which rows of the training datasets serve a stage, and the row that sample number i of a task is.

A row serves where it is of the entry's task and sources, has a usable text, and a picture if it needs one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch.distributed as dist

from harmon.latents import prove_latents
from harmon.training.eligible import Criterion, Fact, RowBits, criterion_keys, find_serving
from harmon.training.first_rows import FirstRows, read_first, write_first
from harmon.training.mixture import Mixture, MixtureSource, TaskMixture, drawn_weights
from harmon.training.row import Place, Row
from harmon.training.stage import TASKS, StageConfig, Task
from harmon.training.window import OpenLatents, OpenShards, OpenTexts, Texts, open_latents
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE

VERSION = 1  # raised when the same stage and data would give other first rows
PICTURE = "picture"  # the text of a mixture entry whose prompt is the picture itself


Entry = tuple[Task, int]


class Piece(NamedTuple):
    """What is opened of a shard at once: the texts of one entry, or the latents that some share."""

    of: tuple[Entry, ...]
    what: Literal["texts", "latents"]
    shard: int


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
        self._kept, self._keeps = kept, keeps
        self._samples = self._task_mixtures(kept, keeps)
        self._sharing = self._who_shares()
        self._open: OpenShards[Piece, OpenTexts | OpenLatents] = OpenShards(self._opened)
        self._reached: dict[tuple[Task, int], tuple[int, int, int]] = {}
        self._first: FirstRows = {}

    def row(self, task: Task, number: int) -> Row:
        """The row of sample `number` of `task`. The next shards of its shuffle's window are opened meanwhile."""
        if number < len(first := self._first.get(task, ())):
            return first[number]
        entry, shard, place = self._samples[task].place(number)
        texts, latents = self._open_at((task, entry), shard)
        self._read_ahead(task, number)
        row, line = self._serving[task, entry][shard][place], self.mixture.first_line(task, entry)
        return Row(
            place=Place(self.mixture.of(task)[entry].dataset, shard, row, texts.table["key"][place].as_py()),
            entry=entry,
            line=line if texts.sources is None else line + int(texts.sources[place]),
            text=texts.table["text"][place].as_py() if "text" in texts.table.column_names else None,
            latents=None if latents is None else latents.of(row, padded=task == "image2text"),
        )

    def keep_first(self) -> None:
        """Have the first rows of each task from what an earlier start kept; where none has, rank 0 keeps them now."""
        if self._kept is None:
            return
        file = self._kept / f"first-{self._content()}.npz"
        found = read_first(file)
        if found is None and self._keeps and (not dist.is_initialized() or dist.get_rank() == 0):
            write_first(file, self._tasks, self.row)
        self._first = {task: [self._at_hand(task, row) for row in rows] for task, rows in (found or {}).items()}

    def _at_hand(self, task: Task, row: Row) -> Row:
        """A row that was kept, in its dataset where that lies now: the same may have moved since."""
        dataset = self.mixture.of(task)[row.entry].dataset
        return replace(row, place=replace(row.place, dataset=dataset))

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

    def _content(self) -> str:
        """Hash of all that decides which row is which sample, and what it holds."""
        asked = [(task, entry) for task in self._tasks for entry in self.mixture.of(task)]
        keys = criterion_keys(self._datasets, [(entry.dataset, self._criterion(task, entry)) for task, entry in asked])
        named = [
            (task, entry.model_dump(exclude={"dataset"}), key) for (task, entry), key in zip(asked, keys, strict=True)
        ]
        said = {"version": VERSION, "stage": self.stage.model_dump(), "entries": named}
        return sha256_hex(canonical_json(said))

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

    def _who_shares(self) -> dict[Entry, tuple[Entry, ...]]:
        """For each entry with stored latents, which others read a shard's latents with it: those of its dataset and
        column group whose window holds all of their shards, as its own does. Other windows hardly meet, each going its
        own way.
        """
        pictured = [one for one in self._serving if self._groups[one[0]] is not None]
        small = {
            (task, entry): (self.mixture.of(task)[entry].dataset, self._groups[task])
            for task, entry in pictured
            if len(self._samples[task].shards[entry]) <= self.stage.window_shards
        }
        return {
            one: tuple(other for other in small if small[other] == small[one]) if one in small else (one,)
            for one in pictured
        }

    def _pieces(self, entry: Entry, shard: int) -> list[Piece]:
        texts = Piece((entry,), "texts", shard)
        return [texts, Piece(shared, "latents", shard)] if (shared := self._sharing.get(entry)) else [texts]

    def _open_at(self, entry: Entry, shard: int) -> tuple[OpenTexts, OpenLatents | None]:
        pieces = self._pieces(entry, shard)
        self._open.read_ahead(pieces)  # both at once
        texts, latents = self._open.get(pieces[0]), self._open.get(pieces[1]) if len(pieces) > 1 else None
        assert isinstance(texts, OpenTexts) and not isinstance(latents, OpenTexts)
        return texts, latents

    def _opened(self, piece: Piece) -> OpenTexts | OpenLatents:
        return self._latents_of(piece) if piece.what == "latents" else self._texts_of(piece)

    def _texts_of(self, piece: Piece) -> OpenTexts:
        ((task, number),) = piece.of
        entry = self.mixture.of(task)[number]
        group, column = _text_of(entry) or (SOURCE, None)
        serving = self._serving[task, number][piece.shard]
        return Texts(group, column, entry.sources).open(self._datasets[entry.dataset], piece.shard, serving)

    def _latents_of(self, piece: Piece) -> OpenLatents:
        task, number = piece.of[0]
        dataset = self._datasets[self.mixture.of(task)[number].dataset]
        rows = dataset.rows(piece.shard)
        cropped, padded = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
        for one in piece.of:
            wanted = padded if one[0] == "image2text" else cropped
            wanted |= self._serving[one][piece.shard].mask(rows)
        group = self._groups[task]
        assert group is not None  # or nobody would share any
        return open_latents(dataset, piece.shard, group, cropped, padded)

    def _read_ahead(self, task: Task, number: int) -> None:
        entry, reach = self._samples[task].reach(number)
        if self._reached.get((task, entry)) != reach:
            self._reached[task, entry] = reach
            shards = self._samples[task].shards_within(entry, reach)
            self._open.read_ahead(piece for shard in shards for piece in self._pieces((task, entry), shard))


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
