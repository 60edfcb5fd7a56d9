"""The rows of a shard as a recaptioning sees them: those it asks about, and what the others hold already."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.dataset import Dataset
from pipelines.manifest import IMAGES, SOURCE
from pipelines.shards import ImageShard
from recaption.dense import is_dense
from recaption.judge import Judge
from recaption.prompt import Prompt
from recaption.recaption import Recaption
from recaption.rows import NOT_SELECTED, Condition, is_sampled, wants
from recaption.work import asking


@dataclass(frozen=True)
class ChosenRows:
    """One shard, row by row."""

    keys: list[str]
    captions: list[str | None]
    works: list[str | None]
    """What is asked about the row; None: nothing."""
    standing: list[dict[str, Any] | None]
    """What the row holds without being asked about."""


class Choice:
    """Decides for each row of a dataset. Any number of threads may ask it, one shard each."""

    def __init__(self, dataset: Dataset, recaption: Recaption) -> None:
        """Raises ConfigurationError: the condition of the rows is none over this dataset."""
        self._dataset = dataset
        self._recaption = recaption
        self._asking = asking(recaption.prompt, recaption.model)
        self._judge = Judge(recaption.prompt, self._asking)
        where = recaption.rows.where
        self._condition = Condition(dataset, where) if where else None
        self._quotas = self._cut(recaption.rows.limit) if recaption.rows.limit else {}

    def shard(self, number: int) -> ChosenRows:
        """The rows of one shard, in order."""
        return self._choose(number, self._quotas.get(number, 0) if self._recaption.rows.limit else None, name=True)

    def any(self) -> bool:
        """Whether a single row is asked about."""
        limit = self._recaption.rows.limit
        shards = self._quotas if limit else self._dataset.shard_numbers
        return any(work for number in shards for work in self._choose(number, self._quotas.get(number), False).works)

    def _cut(self, limit: int) -> dict[int, int]:
        """How many rows of each shard are among the first `limit`."""
        quotas: dict[int, int] = {}
        left = limit
        for number in self._dataset.shard_numbers:
            if not left:
                break
            wanted = self._choose(number, None, name=False).works
            quotas[number] = min(left, sum(work is not None for work in wanted))
            left -= quotas[number]
        return quotas

    def _choose(self, number: int, quota: int | None, name: bool) -> ChosenRows:
        """`quota`: rows that may be asked about; `name`: give each its work (else some non-empty word)."""
        prompt, rows = self._recaption.prompt, self._recaption.rows
        columns = ["key", "source", "task", "caption"]
        source = self._dataset.table(SOURCE, number, columns)
        keys, sources, tasks, captions = (source.column(column).to_pylist() for column in columns)
        before = self._dataset.table(rows.base, number).to_pylist() if rows.base else [None] * len(keys)
        today = [row and self._judge.today(row, caption) for row, caption in zip(before, captions, strict=True)]
        fulfilled = self._condition.keys(number) if self._condition else None
        works: list[str | None] = [None] * len(keys)
        standing: list[dict[str, Any] | None] = [None] * len(keys)
        with self._images(number) as images:
            for row, key in enumerate(keys):
                why = _why_not(sources[row], tasks[row], captions[row], prompt)
                if why is None and (
                    (quota is not None and quota <= 0)
                    or (fulfilled is not None and key not in fulfilled)
                    or (rows.sample is not None and not is_sampled(key, rows.sample))
                ):
                    why = NOT_SELECTED
                if why is None:
                    work = self._work(key, captions[row], images) if name or rows.only == "changed" else "?"
                    if wants(rows.only, work, before[row], today[row]):
                        works[row] = work
                        quota = None if quota is None else quota - 1
                        continue
                standing[row] = today[row] or {"key": key, "status": "failed", "reason": why, "checks": []}
        return ChosenRows(keys, captions, works, standing)

    def _work(self, key: str, caption: str | None, images: ImageShard | None) -> str:
        prompt = self._recaption.prompt
        image = images.find(key) if images else None
        return self._asking.work(caption if prompt.reads_caption else None, image.data if image else None)

    @contextmanager
    def _images(self, number: int) -> Iterator[ImageShard | None]:
        if not self._recaption.prompt.image or self._dataset.entry(IMAGES, number) is None:
            yield None
            return
        images = self._dataset.images(number)
        try:
            yield images
        finally:
            images.close()


def _why_not(source: str, task: str, caption: str | None, prompt: Prompt) -> str | None:
    """Why a row is none for this prompt."""
    if prompt.applies_to == "images":
        if task == "text":
            return "no_image"
    elif not is_dense(source, task):
        return "not_dense"
    return "no_caption" if prompt.reads_caption and not (caption and caption.strip()) else None
