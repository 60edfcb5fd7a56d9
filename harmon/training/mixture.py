"""Which samples a train step sees: blocks of one task, and the pure function from a sample's index to its
row.

Nothing here depends on the number of workers. A task's samples are numbered 0, 1, 2, ...; a step takes whole
blocks of consecutive numbers, each worker an even share of every block; `TaskMixture.locate` says where
number i lies. One cursor a task (the next number) is all the state there is.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harmon.training.draws import keyed
from harmon.training.stage import TASKS, StageConfig, Task, TaskRatio
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings


class MixtureSource(Settings):
    """Rows of one dataset that serve a task."""

    dataset: str
    """Folder of the dataset."""
    rows: Task
    """Rows whose `task` in the source columns is this."""
    text: str = Field(pattern=r"^(caption|conversation|picture|caption\.[A-Za-z0-9._-]+)$")
    """`caption` or `conversation` of the source columns, a caption column group, or `picture`: the prompt of a
    text-to-image row is the picture itself (reconstruction alignment)."""
    sources: tuple[str, ...] | None = None
    """Names of the sources whose rows are taken; None: all."""
    weight: int = Field(1, gt=0, le=1000)
    """Share of the task's samples, relative to its other entries."""
    epochs: float | None = Field(None, gt=0)
    """Passes through its rows over the whole stage, in place of a weight; the entries with weights share what is left
    of the task's samples."""

    @property
    def name(self) -> str:
        """Its first source and how many more, or else its dataset's folder."""
        if not self.sources:
            return self.dataset.rstrip("/").rpartition("/")[2]
        return self.sources[0] + (f"+{len(self.sources) - 1}" if len(self.sources) > 1 else "")


class Mixture(Settings):
    """The entries of each task."""

    text: tuple[MixtureSource, ...] = ()
    image2text: tuple[MixtureSource, ...] = ()
    text2image: tuple[MixtureSource, ...] = ()

    def of(self, task: Task) -> tuple[MixtureSource, ...]:
        """The entries of `task`."""
        entries: tuple[MixtureSource, ...] = getattr(self, task)
        return entries

    def names(self, task: Task) -> list[str]:
        """What metrics call the entries of `task`: by their sources or dataset; two of one name by their text too."""
        return _told_apart([(entry.name, entry.text, place) for place, entry in enumerate(self.of(task))])

    def lines(self, task: Task) -> list[str]:
        """What metrics call the losses of `task`: an entry that names several sources has one for each, in its order,
        any other has one of its own name.
        """
        return _told_apart(
            [
                (name, entry.text, place)
                for place, entry in enumerate(self.of(task))
                for name in (entry.sources if entry.sources and len(entry.sources) > 1 else (entry.name,))
            ]
        )

    def first_line(self, task: Task, entry: int) -> int:
        """Which of `lines` is the first of entry number `entry`."""
        return sum(max(1, len(one.sources or ())) for one in self.of(task)[:entry])

    @property
    def pictured(self) -> bool:
        """Whether the prompt of a text-to-image row may be the picture itself."""
        return any(entry.text == "picture" for entry in self.text2image)


def _told_apart(named: Sequence[tuple[str, str, int]]) -> list[str]:
    """Names of (name, text, entry): with the text where a name comes twice, and the entry where that does too."""
    first = [name for name, _, _ in named]
    names = [f"{name}:{text}" if first.count(name) > 1 else name for name, text, _ in named]
    return [
        f"{name}#{entry}" if names.count(name) > 1 else name for name, (_, _, entry) in zip(names, named, strict=True)
    ]


@dataclass(frozen=True)
class Block:
    """`rows` consecutive samples of one task, the first being number `start`."""

    task: Task
    start: int
    rows: int

    def share(self, rank: int, world: int) -> range:
        """The sample numbers of worker `rank` of `world`: even within one row, all workers together the
        block.
        """
        first, last = self.rows * rank // world, self.rows * (rank + 1) // world
        return range(self.start + first, self.start + last)


class Interleave:
    """Endless sequence of entries in the ratio of whole-number weights, each as evenly spread as can be.

    This is cumulative rounding that never takes a place back (with three entries, plain rounding of the
    running shares does): Tijdeman, "The chairman assignment problem", 1980. After any number of places each
    entry has its exact share within 1 - 1/(2n - 2), and exactly its share after every sum(weights) places.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        common = math.gcd(*weights)
        self.weights = [weight // common for weight in weights]
        self.period = sum(self.weights)
        self._places = self._one_period()
        self._entries = [entry for entry, _ in self._places]

    def locate(self, place: int) -> tuple[int, int]:
        """(entry at `place`, how many of its places come before)."""
        periods, offset = divmod(place, self.period)
        entry, before = self._places[offset]
        return entry, periods * self.weights[entry] + before

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each entry has."""
        periods, offset = divmod(places, self.period)
        head = self._entries[:offset]
        return [periods * weight + head.count(entry) for entry, weight in enumerate(self.weights)]

    def _one_period(self) -> list[tuple[int, int]]:
        taken = [0] * len(self.weights)
        places = []
        slack = 2 * max(1, sum(weight > 0 for weight in self.weights) - 1)
        for place in range(1, self.period + 1):
            # How far each entry is behind its share, in units of 1/(slack * period); due from 1/slack on.
            behind = [slack * (w * place - self.period * t) for w, t in zip(self.weights, taken, strict=True)]
            due = [e for e, w in enumerate(self.weights) if w and behind[e] >= self.period]
            entry = min(due, key=lambda e: Fraction((slack - 1) * self.period - behind[e], self.weights[e]))
            places.append((entry, taken[entry]))
            taken[entry] += 1
        return places


SHARES = 10_000  # parts of a task's samples in which entries with epochs are counted: the order repeats after so many


def drawn_weights(stage: StageConfig, task: Task, entries: Sequence[MixtureSource], rows: Sequence[int]) -> list[int]:
    """The weights that the entries of `task` are drawn with, their rows being so many: their own, or where one states
    `epochs` those that come to them over the stage's samples, within one of `SHARES` parts.

    Raises:
        ConfigurationError: the epochs leave nothing for an entry with a weight, or there is none to take what is left.
    """
    if all(entry.epochs is None for entry in entries):
        return [entry.weight for entry in entries]
    samples = cursors(stage, stage.steps)[task]
    asked = [0.0 if entry.epochs is None else entry.epochs * n for entry, n in zip(entries, rows, strict=True)]
    others, left = sum(entry.weight for entry in entries if entry.epochs is None), samples - sum(asked)
    if not others or left < samples / SHARES:
        raise ConfigurationError(
            f"{stage.stage} draws {samples:,} samples of {task}, and the epochs of its entries come to "
            f"{sum(asked):,.0f}: lower them, and give one entry a weight in place of epochs, which takes what is left."
        )
    free = [left * entry.weight / others if entry.epochs is None else 0.0 for entry in entries]
    drawn = [n + m for n, m in zip(asked, free, strict=True)]
    return [max(1, round(SHARES * n / samples)) for n in drawn]


@lru_cache(maxsize=16)
def _interleave(weights: tuple[int, ...]) -> Interleave:
    return Interleave(weights)


def blocks_until(ratio: TaskRatio, blocks: int) -> dict[Task, int]:
    """How many of the first `blocks` blocks each task has: less than one block from the exact share."""
    counts = _interleave((ratio.text, ratio.image2text, ratio.text2image)).counts(blocks)
    return dict(zip(TASKS, counts, strict=True))


def blocks_of_step(stage: StageConfig, step: int) -> list[Block]:
    """The blocks of train step `step` (from 0), task by task."""
    before = blocks_until(stage.ratio, step * stage.blocks_per_step)
    after = blocks_until(stage.ratio, (step + 1) * stage.blocks_per_step)
    return [
        Block(task, number * stage.block_rows, stage.block_rows)
        for task in TASKS
        for number in range(before[task], after[task])
    ]


def cursors(stage: StageConfig, step: int) -> dict[Task, int]:
    """Each task's next sample number before train step `step`."""
    counts = blocks_until(stage.ratio, step * stage.blocks_per_step)
    return {task: counts[task] * stage.block_rows for task in TASKS}


class Shuffle:
    """Endless two-level shuffle of shards of known sizes: shards in a drawn order, rows mixed within `window`
    shards.

    Position p of epoch p // total is a pure function of (key, p); at most `window` shards serve neighbouring
    positions.
    """

    def __init__(self, counts: Sequence[int], window: int, *key: str | int) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.window = window
        self.key = key
        self.total = int(self.counts.sum())
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._rows = lru_cache(maxsize=4)(self._draw_rows)

    def locate(self, position: int) -> tuple[int, int]:
        """(place of the shard in `counts`, place among its rows) of `position`."""
        epoch, offset = divmod(position, self.total)
        order, ends = self._order(epoch)
        window = bisect_right(ends[self.window - 1 :: self.window], offset)
        first = window * self.window
        start = ends[first - 1] if first else 0
        mixed = start + int(self._rows(epoch, window)[offset - start])
        place = bisect_right(ends, mixed)
        return int(order[place]), mixed - (ends[place - 1] if place else 0)

    def reach(self, position: int) -> tuple[int, int, int]:
        """How far `position` needs shards open: its epoch, its window there, and how many of the next window's should
        be by now. It grows by one while as many rows are read as a shard has.
        """
        epoch, offset = divmod(position, self.total)
        _, ends = self._order(epoch)
        window = bisect_right(ends[self.window - 1 :: self.window], offset)
        first, last = window * self.window, min((window + 1) * self.window, len(ends))
        start = ends[first - 1] if first else 0
        return epoch, window, 1 + self.window * (offset - start) // (ends[last - 1] - start)

    def places_within(self, reach: tuple[int, int, int]) -> list[int]:
        """Places in `counts` of the shards that a `reach` needs open; an epoch's last window is followed by the next
        epoch's first.
        """
        epoch, window, further = reach
        order = self._order(epoch)[0][window * self.window :].tolist()
        if len(order) <= self.window:
            order += self._order(epoch + 1)[0][:further].tolist()
        return [int(place) for place in order[: self.window + further]]

    def _draw_order(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        order = keyed("shards", *self.key, index=epoch).permutation(len(self.counts))
        return order, np.cumsum(self.counts[order]).tolist()

    def _draw_rows(self, epoch: int, window: int) -> NDArray[np.int64]:
        _, ends = self._order(epoch)
        first, last = window * self.window, min((window + 1) * self.window, len(ends))
        size = ends[last - 1] - (ends[first - 1] if first else 0)
        return keyed("rows", *self.key, epoch, index=window).permutation(size)


class ServingRows(Protocol):
    """Row numbers of one shard, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> int: ...


class TaskMixture:
    """The pure function (seed, stage, task, index) -> (entry, shard, row) of one task.

    `eligible[e]` maps the shard numbers of entry e to the rows that serve the task. Which entry has sample i
    follows `Interleave`, so the samples so far hold each entry's exact share within one.
    """

    def __init__(
        self,
        stage: StageConfig,
        task: Task,
        weights: Sequence[int],
        eligible: Sequence[Mapping[int, ServingRows]],
    ) -> None:
        self.shards = [[number for number, rows in entry.items() if len(rows)] for entry in eligible]
        for number, shards in enumerate(self.shards):
            if not shards:
                raise ConfigurationError(
                    f"{stage.stage}, task {task}: entry {number} of the mixture has no usable row; "
                    "check its dataset, rows, text and sources, and that the latents were computed."
                )
        self.eligible = eligible
        self._interleave = Interleave(weights)
        self._shuffles = [
            Shuffle(
                [len(entry[shard]) for shard in shards],
                stage.window_shards,
                stage.seed,
                stage.stage,
                task,
                number,
            )
            for number, (entry, shards) in enumerate(zip(eligible, self.shards, strict=True))
        ]

    def locate(self, index: int) -> tuple[int, int, int]:
        """(entry, shard number, row) of sample `index`."""
        entry, shard, place = self.place(index)
        return entry, shard, int(self.eligible[entry][shard][place])

    def place(self, index: int) -> tuple[int, int, int]:
        """(entry, shard number, place among that shard's eligible rows) of sample `index`."""
        entry, position = self._interleave.locate(index)
        shard, place = self._shuffles[entry].locate(position)
        return entry, self.shards[entry][shard], place

    def reach(self, index: int) -> tuple[int, tuple[int, int, int]]:
        """The entry of sample `index`, and how far its shuffle needs shards open (`Shuffle.reach`)."""
        entry, position = self._interleave.locate(index)
        return entry, self._shuffles[entry].reach(position)

    def shards_within(self, entry: int, reach: tuple[int, int, int]) -> list[int]:
        """Numbers of the shards of `entry` that a `reach` needs open."""
        return [self.shards[entry][place] for place in self._shuffles[entry].places_within(reach)]

    def epochs(self, samples: int) -> list[float]:
        """How often the first `samples` samples have gone through each entry."""
        counts = self._interleave.counts(samples)
        return [count / shuffle.total for count, shuffle in zip(counts, self._shuffles, strict=True)]
