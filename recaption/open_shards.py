"""The shards that are being asked about at this moment: their questions go out, their answers come in, in any order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import pyarrow as pa

from pipelines.manifest import IMAGES, TELEMETRY
from pipelines.shards import ImageShard
from pipelines.steps import ShardOutput, StepRun
from recaption.choice import Choice, ChosenRows
from recaption.engines import Answer, Answered, Question
from recaption.judge import Judge
from recaption.known import Known, KnownCaptions
from recaption.ledger import Ledger
from recaption.left import Left
from recaption.pictures import stored_picture
from recaption.recaption import Recaption
from recaption.work import asking

OPEN_ROWS = 1 << 16  # no further shard is opened while those open hold this many rows: memory stays flat

CAPTION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens_in", pa.int32()),  # of all draws
        ("tokens_out", pa.int32()),
        ("draw", pa.int32()),  # which draw the text is: 0 the first, sampled as the prompt says
        ("drawn", pa.string()),  # names how a later one was sampled; null for the first
        ("checks", pa.list_(pa.string())),  # names of the checks that the answer failed
        ("work", pa.string()),  # names what was asked, wherever it was asked (recaption.work)
    ]
)
TELEMETRY_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("engine", pa.string()),
        ("seconds", pa.float32()),  # from the first request to the answer that stands, waits included
        ("attempts", pa.int32()),  # requests; 0 where the caption stood already
        ("endpoint", pa.string()),
        ("detail", pa.string()),  # the server's own words where it would not answer
        ("reused", pa.string()),  # dataset and group that had the caption
        ("reused_content", pa.string()),  # content hash of that dataset when it was read
    ]
)


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Shard:
    """A shard with questions under way."""

    number: int
    rows: ChosenRows
    output: ShardOutput
    images: ImageShard | None
    known: dict[str, Known]
    waits_for: set[str] = field(default_factory=set)
    """Works without an answer that stands."""


@dataclass(frozen=True)
class _Subject:
    """What a question is about: a caption, an image, or both."""

    work: str
    key: str
    caption: str | None
    shard: _Shard


@dataclass
class _Waiting:
    """Work that is under way: the draw whose answer is awaited, and whom it is for."""

    subjects: list[_Subject] = field(default_factory=list)
    draw: int = 0


class OpenShards:
    """Opens shards one after the other, as far as memory allows, and finishes each when its last answer is there.

    A slow answer holds up the end of its own shard and nothing else. Equal work is asked once, whichever rows
    or shards it is for.
    """

    def __init__(
        self, run: StepRun, recaption: Recaption, ledger: Ledger, known: KnownCaptions | None, pending: Sequence[int]
    ) -> None:
        """`known`: captions that may answer identical work; `pending`: the shards to do."""
        self._run = run
        self._prompt = recaption.prompt
        self._group = recaption.group
        self._asking = asking(recaption.prompt, recaption.model)
        self._judge = Judge(recaption.prompt, self._asking)
        self._ledger = ledger
        self._left = Left(recaption, known, ledger)
        self._engine = "none"
        self._reader = ThreadPoolExecutor(1, "shard-reader")
        self._pending = iter(zip(pending, _ahead(self._reader, Choice(run.dataset, recaption).shard, pending, 1)))
        self._unasked: deque[_Shard] = deque()
        self._open: dict[int, _Shard] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._again: deque[Question] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        for shard in self._open.values():
            if shard.images:
                shard.images.close()

    def any_question(self) -> bool:
        """Whether a model has to be asked; shards that need none are finished on the way."""
        while not self._unasked:
            if not self._open_next():
                return False
        return True

    def lots(self, size: int, engine: str) -> Iterator[Sequence[Question]]:
        """Questions in lots of at most `size`, as `Engine.answers` takes them; `engine`: its version.

        Rows of like length come together. A lot is answered whole or not at all, so what the lots of a shard hold
        depends on its rows and on captions that stood already, not on how often the run was killed.
        """
        self._engine = engine
        while True:
            if self._unasked:
                yield from self._lots_of(self._unasked.popleft(), size)
            elif self._again:
                yield [self._again.popleft()]
            elif self._has_room() and self._open_next():
                continue
            elif self._open:
                yield ()
            else:
                return

    def take(self, answered: Answered) -> None:
        """Keep a lot of answers on disk, and finish the shards that have all of theirs."""
        self._ledger.keep(answered)
        for question, answer in answered:
            waiting = self._waiting.get(question.work)
            if waiting is not None and waiting.draw == question.draw:  # else asked along with its lot, and had before
                self._go_on(question.work, waiting, answer)

    # Opening a shard

    def _has_room(self) -> bool:
        """Two shards may be open in any case: the next one's questions fill in while the last of one are awaited."""
        return len(self._open) < 2 or sum(len(shard.rows.keys) for shard in self._open.values()) < OPEN_ROWS

    def _open_next(self) -> bool:
        """Open one more shard; False where none is left."""
        if (found := next(self._pending, None)) is None:
            return False
        number, rows = found
        works = dict.fromkeys(work for work in rows.works if work)
        output = self._run.shard(number)
        images = self._images(number) if works else None
        shard = _Shard(number, rows, output, images, self._left.known(rows))
        shard.waits_for = set(works) - shard.known.keys()
        self._open[number] = shard
        if shard.waits_for:
            self._unasked.append(shard)
        else:
            self._finish(shard)
        return True

    def _images(self, number: int) -> ImageShard | None:
        has_images = self._prompt.image and self._run.dataset.entry(IMAGES, number)
        return self._run.dataset.images(number) if has_images else None

    def _lots_of(self, shard: _Shard, size: int) -> Iterator[Sequence[Question]]:
        subjects = self._subjects(shard)
        begun = dict(self._ledger.answers(subject.work for subject in subjects))
        asked: list[list[_Subject]] = []
        for start in range(0, len(subjects), size):
            lot = subjects[start : start + size]
            asked.append([one for one in lot if one.work not in begun and one.work not in self._waiting])
        for subject in subjects:
            waiting = self._waiting.setdefault(subject.work, _Waiting())
            waiting.subjects.append(subject)
        for work, answers in begun.items():  # what was answered before a kill
            waiting = self._waiting[work]
            if len(waiting.subjects) == 1:  # else another open shard has gone on with it
                waiting.draw = len(answers) - 1
                self._go_on(work, waiting, answers[-1])
        for lot in filter(None, asked):
            yield [self._question(subject, 0) for subject in lot]

    def _subjects(self, shard: _Shard) -> list[_Subject]:
        """What the shard asks about, each work once, the shortest captions first."""
        rows = shard.rows
        firsts: dict[str, int] = {}
        for row, work in enumerate(rows.works):
            if work is not None and work in shard.waits_for:
                firsts.setdefault(work, row)
        order = sorted(firsts.items(), key=lambda item: (len(rows.captions[item[1]] or ""), item[1]))
        return [_Subject(work, rows.keys[row], rows.captions[row], shard) for work, row in order]

    def _go_on(self, work: str, waiting: _Waiting, answer: Answer) -> None:
        """Ask again after this answer, if a check says so, or settle the work."""
        subject = waiting.subjects[0]
        if self._judge.wants_more(answer, waiting.draw, subject.caption):
            waiting.draw += 1
            self._again.append(self._question(subject, waiting.draw))
            return
        for one in self._waiting.pop(work).subjects:
            self._settle(one.shard, work)

    def _question(self, subject: _Subject, draw: int) -> Question:
        caption = subject.caption if self._prompt.reads_caption else None
        size, images = self._prompt.image, subject.shard.images  # open until the question is answered
        shown = partial(stored_picture, images, subject.key, size) if size else None
        return self._asking.question(subject.work, draw, caption, shown)

    # Finishing a shard

    def _settle(self, shard: _Shard, work: str) -> None:
        shard.waits_for.discard(work)
        if not shard.waits_for and shard.number in self._open:
            self._finish(shard)

    def _finish(self, shard: _Shard) -> None:
        rows = shard.rows
        asked = {work for work in rows.works if work and work not in shard.known}
        given = dict(self._ledger.answers(asked))
        captions: list[dict[str, Any]] = []
        telemetry: list[dict[str, Any]] = []
        for key, caption, work, standing in zip(rows.keys, rows.captions, rows.works, rows.standing, strict=True):
            if work is None:
                captions.append(standing or {})
                telemetry.append({"key": key})
            elif known := shard.known.get(work):
                captions.append({"key": key, "work": work} | self._judge.reused(known, caption))
                source = {"reused": f"{known.dataset}/{known.group}", "reused_content": known.content_hash}
                telemetry.append({"key": key, "attempts": 0} | source)
            else:
                answers = given[work]
                captions.append({"key": key, "work": work} | self._judge.answered(work, answers, caption))
                telemetry.append({"key": key, "engine": self._engine} | _spent(answers))
        shard.output.columns(self._group, _table(captions, CAPTION_SCHEMA))
        shard.output.columns(self._group + TELEMETRY, _table(telemetry, TELEMETRY_SCHEMA))
        del self._open[shard.number]
        if shard.images:
            shard.images.close()
        shard.output.finish(len(rows.keys))


def _spent(answers: Sequence[Answer]) -> dict[str, Any]:
    """What all draws of one work took; the last one stands."""
    return {
        "seconds": sum(answer.seconds for answer in answers),
        "attempts": sum(answer.attempts for answer in answers),
        "endpoint": answers[-1].endpoint,
        "detail": answers[-1].detail,
    }


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; names that the schema lacks are left out, names that a row lacks are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """`function` of each item in order, with up to `depth` of them worked on before they are wanted."""
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > depth:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
