"""A look before the bill: what a recaptioning would ask, and what that takes, from a measured sample."""

import hashlib
import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES
from recaption.checks import verdict
from recaption.choice import Choice
from recaption.engines import Engine, Question
from recaption.left import left
from recaption.pictures import stored_picture
from recaption.recaption import Recaption
from recaption.work import asking

SAMPLE = 200


@dataclass(frozen=True)
class Counts:
    """What a recaptioning would do, counted."""

    rows: int
    chosen: int
    """Rows that it is about."""
    reused: int
    """Of those: rows whose work is answered already, by a caption that stands or by a run that was killed."""
    requests: int
    """What is left to ask, each work once."""
    sample: tuple[tuple[int, str, str], ...]
    """Shard, key and work of at most SAMPLE of them, drawn at random and always the same."""


@dataclass(frozen=True)
class Rates:
    """What the sample took, a request on average."""

    measured: int
    tokens_in: float
    tokens_out: float
    seconds: float
    """Of wall-clock time, with as many in flight as the engine has."""
    draws: float
    """Requests a row: over 1 where a check has some asked again."""
    passed: float
    """Share of rows that get a caption at their first draw."""
    engine: str


@dataclass(frozen=True)
class Estimate:
    """What the whole would take."""

    rows: int
    chosen: int
    reused: int
    requests: int
    tokens_in: int
    tokens_out: int
    seconds: float
    gpu_hours: float
    cost: float | None
    """In the currency of the price; None without one."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.chosen:,} of {self.rows:,} rows are chosen; {self.reused:,} have their caption already"
        yield f"{self.requests:,} requests, {self.tokens_in:,} tokens in, {self.tokens_out:,} tokens out"
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        spent = (
            f"{self.gpu_hours:,.2f} GPU-hours{cost}" if self.gpu_hours or not self.requests else "no GPU-hours: a CPU"
        )
        yield f"{self.seconds / 3600:,.2f} hours at the sample's rate, {spent}"


def count(dataset: Dataset, recaption: Recaption, reuse: Sequence[Dataset] = ()) -> Counts:
    """Count what `recaption` would ask of `dataset`: 8 bytes of memory a row, and every image that it is about read."""
    choice = Choice(dataset, recaption)
    rows = chosen = reused = 0
    asked: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
    drawn: list[tuple[int, int, str, str]] = []  # a heap; the largest hash stands first, negated
    with left(dataset, recaption, reuse) as remaining:
        for shard in dataset.shard_numbers:
            found = choice.shard(shard)
            to_ask = remaining.to_ask(found)
            rows += len(found.keys)
            chosen += sum(work is not None for work in found.works)
            reused += sum(work not in to_ask for work in found.works if work)
            asked.append(np.array([int(work[:16], 16) for work in to_ask], np.uint64))
            for work, key in to_ask.items():
                order = int.from_bytes(hashlib.sha256(f"sample {work}".encode()).digest()[:8], "big")
                entry = (-order, shard, key, work)
                if len(drawn) == SAMPLE and entry < drawn[0]:
                    continue
                if work not in {other for *_, other in drawn}:  # another shard may ask it too
                    (heapq.heappush if len(drawn) < SAMPLE else heapq.heapreplace)(drawn, entry)
    requests = len(np.unique(np.concatenate(asked))) if asked else 0
    sample = tuple(sorted((shard, key, work) for _, shard, key, work in drawn))
    return Counts(rows, chosen, reused, requests, sample)


def measure(dataset: Dataset, recaption: Recaption, counts: Counts, engine: Engine) -> Rates:
    """Ask the sample, and keep nothing of it.

    Raises:
        ConfigurationError: there is nothing to ask, or none of the sample was answered.
    """
    with ExitStack() as opened:
        questions, captions = _questions(dataset, recaption, counts, opened)
        size = engine.batch_pictures if recaption.prompt.image else engine.batch_rows
        lots = (questions[start : start + size] for start in range(0, len(questions), size))
        began = time.perf_counter()
        answers = [one for answered in engine.answers(lots) for one in answered]
        seconds = time.perf_counter() - began
    given = [(question, answer) for question, answer in answers if answer.text is not None]
    if not given:
        raise ConfigurationError(f"None of the {len(questions)} sampled rows was answered; there is nothing to go by.")
    prompt = recaption.prompt
    verdicts = [
        verdict(
            (a.text or "").strip(), a.finish_reason or "", captions[q.work] if prompt.reads_caption else None, prompt
        )
        for q, a in given
    ]
    again = sum(one.ask_again for one in verdicts) / len(given)
    return Rates(
        measured=len(questions),
        tokens_in=sum(answer.tokens_in or 0 for _, answer in given) / len(given),
        tokens_out=sum(answer.tokens_out or 0 for _, answer in given) / len(given),
        seconds=seconds / len(questions),
        draws=sum(again**draw for draw in range(1 + (prompt.retry.times if prompt.retry else 0))),
        passed=sum(one.reason is None for one in verdicts) / len(questions),
        engine=engine.version,
    )


def estimate(counts: Counts, rates: Rates, gpus: float, gpu_hour_price: float | None = None) -> Estimate:
    """What all of `counts` would take at these rates on `gpus` GPUs: those that the sample was measured on; 0 where
    it was measured on a CPU."""
    requests = round(counts.requests * rates.draws)
    seconds = requests * rates.seconds
    gpu_hours = gpus * seconds / 3600
    return Estimate(
        rows=counts.rows,
        chosen=counts.chosen,
        reused=counts.reused,
        requests=requests,
        tokens_in=round(requests * rates.tokens_in),
        tokens_out=round(requests * rates.tokens_out),
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=None if gpu_hour_price is None else gpu_hours * gpu_hour_price,
    )


def nothing(counts: Counts) -> Estimate:
    """The estimate of a recaptioning that has nothing to ask."""
    return Estimate(counts.rows, counts.chosen, counts.reused, 0, 0, 0, 0.0, 0.0, None)


def _questions(
    dataset: Dataset, recaption: Recaption, counts: Counts, opened: ExitStack
) -> tuple[list[Question], dict[str, str | None]]:
    """The sample's questions, and the caption of each work. `opened` closes the shards that images are read from."""
    prompt, ask = recaption.prompt, asking(recaption.prompt, recaption.model)
    questions: list[Question] = []
    captions: dict[str, str | None] = {}
    for shard in sorted({shard for shard, _, _ in counts.sample}):
        source = dataset.table("source", shard, ["key", "caption"])
        texts = dict(zip(*(source.column(name).to_pylist() for name in ("key", "caption")), strict=True))
        images = dataset.images(shard) if prompt.image and dataset.entry(IMAGES, shard) else None
        if images:
            opened.callback(images.close)
        for _, key, work in (one for one in counts.sample if one[0] == shard):
            captions[work] = texts[key]
            shown = partial(stored_picture, images, key, prompt.image) if prompt.image else None
            questions.append(ask.question(work, 0, texts[key] if prompt.reads_caption else None, shown))
    return questions, captions
