"""One thread that owns the model: every request's pictures and answers, step by step, in shared batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from harmon.generate import decoded
from harmon.model.mar import Grid
from harmon.serving.canvases import Canvas, Canvases
from harmon.serving.jobs import Drawing, Drawn, Failed, Frame, Job, Speaking, Spoken
from harmon.serving.metrics import Metrics
from harmon.serving.settings import ServingSettings
from harmon.serving.speeches import Speeches
from harmon.trained import Trained

log = logging.getLogger(__name__)
J = TypeVar("J", bound=Job)
READ_TOGETHER = 16  # prompts of one pass at most, which bounds its memory and how long others wait for their next token
RECENT = 0.2  # weight of the newest job in the mean time of one
PATIENCE = 60  # seconds that a refused client is told to wait at most


class Full(Exception):
    """The queue is full; `seconds` until there may be room again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full; come again in {seconds} s")
        self.seconds = seconds


@dataclass
class Lane(Generic[J]):
    """Jobs of one kind: those that wait, and those whose rows are in a batch."""

    kind: str
    rows: int
    """Of the batch at most."""
    queue: int
    metrics: Metrics
    waiting: deque[J] = field(default_factory=deque)
    running: list[J] = field(default_factory=list)
    mean: float = 1.0
    """Seconds of a job in the batch, lately."""

    def __post_init__(self) -> None:
        for how in ("done", "cancelled", "failed", "refused"):  # zero is told before anything has happened
            self.metrics.ended.labels(self.kind, how)
        self.show()

    def add(self, jobs: Sequence[J]) -> None:
        """All of `jobs`, or none. Raises Full."""
        free = self.rows - len(self.running) + self.queue - len(self.waiting)
        if len(jobs) > free:
            self.metrics.ended.labels(self.kind, "refused").inc(len(jobs))
            raise Full(max(1, min(PATIENCE, math.ceil(self.mean * (len(self.waiting) + len(jobs)) / self.rows))))
        self.waiting += jobs
        self.show()

    def drop_cancelled(self) -> list[J]:
        """Forget cancelled jobs; those of them that were in the batch."""
        waiting = [job for job in self.waiting if not job.cancelled]
        self.metrics.ended.labels(self.kind, "cancelled").inc(len(self.waiting) - len(waiting))
        self.waiting = deque(waiting)
        gone = [job for job in self.running if job.cancelled]
        self.end(gone, "cancelled")
        return gone

    def begin(self, most: int) -> list[J]:
        """The jobs that wait longest and for which there is room, now in the batch."""
        new = [self.waiting.popleft() for _ in range(min(most, len(self.waiting), self.rows - len(self.running)))]
        for job in new:
            job.begun = time.monotonic()
            self.metrics.wait_seconds.labels(self.kind).observe(job.begun - job.asked)
        self.running += new
        self.show()
        return new

    def end(self, jobs: Sequence[J], how: str) -> None:
        for job in jobs:
            self.running.remove(job)
            if how == "done":
                self.mean += RECENT * (time.monotonic() - job.begun - self.mean)
        self.metrics.ended.labels(self.kind, how).inc(len(jobs))
        self.show()

    def stepped(self, rows: int, seconds: float) -> None:
        self.metrics.batch_rows.labels(self.kind).observe(rows)
        self.metrics.step_seconds.labels(self.kind).observe(seconds)

    def show(self) -> None:
        self.metrics.waiting.labels(self.kind).set(len(self.waiting))
        self.metrics.running.labels(self.kind).set(len(self.running))


class Engine:
    """Draws and speaks until it is stopped. Every public method may be called from any thread.

    A turn is one AR step of each grid's canvases, then as many tokens of all answers as take about as long: neither
    kind of work starves the other. New jobs join between steps, cancelled ones leave there.
    """

    def __init__(self, trained: Trained, settings: ServingSettings, metrics: Metrics) -> None:
        self.trained, self.settings, self.metrics = trained, settings, metrics
        self.drawing: Lane[Drawing] = Lane("draw", settings.pictures, settings.queue, metrics)
        self.speaking: Lane[Speaking] = Lane("speak", settings.answers, settings.queue, metrics)
        self._canvases: dict[Grid, Canvases] = {}
        self._canvas_of: dict[Drawing, Canvas] = {}
        self._speeches = Speeches(trained)
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="harmon-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop all work, telling each job that it failed; waits for the step that is being computed."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def draw(self, jobs: Sequence[Drawing]) -> None:
        """Raises Full, and then takes none of `jobs`."""
        with self._wake:
            self.drawing.add(jobs)
            self._wake.notify()

    def speak(self, job: Speaking) -> None:
        """Raises Full."""
        with self._wake:
            self.speaking.add([job])
            self._wake.notify()

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._has_work())
                if self._stopping:
                    break
            began = time.monotonic()
            self._draw_once()
            until = time.monotonic() + (time.monotonic() - began)
            self._speak_once()
            while self.speaking.running and time.monotonic() < until and not self._stopping:
                self._speak_once()
        for lane in (self.drawing, self.speaking):
            for job in [*lane.waiting, *lane.running]:
                job.tell(Failed())

    def _has_work(self) -> bool:
        return any(lane.waiting or lane.running for lane in (self.drawing, self.speaking))

    def _draw_once(self) -> None:
        with self._wake:
            gone, new = self.drawing.drop_cancelled(), self.drawing.begin(READ_TOGETHER)
        self._leave(gone)
        by_grid: dict[Grid, list[Canvas]] = {}
        for job in new:
            canvas = self._canvas_of[job] = Canvas(self.trained.model, job.subject)
            by_grid.setdefault(canvas.grid, []).append(canvas)
        for grid, canvases in by_grid.items():
            batch = self._canvases.setdefault(grid, Canvases(self.trained.model, self.trained.text.pad))
            self._guarded_draw(partial(batch.join, canvases), canvases)
        for batch in self._canvases.values():
            self._guarded_draw(partial(self._advance, batch), batch.rows)
        self._canvases = {grid: batch for grid, batch in self._canvases.items() if batch.rows}

    def _advance(self, batch: Canvases) -> None:
        """One AR step of the canvases of one grid, and what there is to tell of it."""
        began, rows = time.monotonic(), batch.rows
        if not rows:
            return
        batch.advance()
        self.drawing.stepped(len(rows), time.monotonic() - began)
        job_of = {canvas: job for job, canvas in self._canvas_of.items()}
        shown = [row for row in rows if row.finished or _is_due(row, job_of[row].frames)]
        pixels = decoded(self.trained, batch.latents(shown)) if shown else ()
        done = [job_of[row] for row in rows if row.finished]
        self.metrics.pictures.inc(len(done))
        self._end_drawing(done, "done")
        for row, levels in zip(shown, pixels):
            job_of[row].tell(Drawn(levels) if row.finished else Frame(row.done, len(row.turns), levels))

    def _speak_once(self) -> None:
        with self._wake:
            gone, new = self.speaking.drop_cancelled(), self.speaking.begin(READ_TOGETHER)
        self._speeches.leave([job.speech for job in gone])
        if new:
            self.metrics.prompt_tokens.inc(sum(len(job.speech.prompt) for job in new))
            self._guarded_speech(new, joining=True)
        if self._speeches.rows:
            self._guarded_speech(list(self.speaking.running), joining=False)

    def _speak(self, jobs: list[Speaking], joining: bool) -> None:
        began, before = time.monotonic(), [len(job.speech.said) for job in jobs]
        if joining:
            self._speeches.join([job.speech for job in jobs])
        else:
            self._speeches.advance()
        self.speaking.stepped(len(jobs), time.monotonic() - began)
        with self._wake:
            self.speaking.end([job for job in jobs if job.speech.ending is not None], "done")
        for job, count in zip(jobs, before):
            tokens = tuple(job.speech.said[count:])
            self.metrics.answer_tokens.inc(len(tokens))
            job.tell(Spoken(tokens, job.speech.ending))

    # -- leaving ---------------------------------------------------------------------------------------------

    def _leave(self, jobs: Sequence[Drawing]) -> None:
        for job in jobs:
            canvas = self._canvas_of.pop(job)
            if canvas.grid in self._canvases:
                self._canvases[canvas.grid].leave([canvas])

    def _end_drawing(self, jobs: Sequence[Drawing], how: str) -> None:
        self._leave(jobs)
        with self._wake:
            self.drawing.end(jobs, how)

    # An error here may come of one row (memory above all): those in the batch fail, and the server goes on.

    def _guarded_draw(self, work: Callable[[], None], rows: Sequence[Canvas]) -> None:
        try:
            work()
        except Exception:
            log.exception("drawing %d pictures failed; their requests are answered with an error", len(rows))
            failed = [job for job, canvas in self._canvas_of.items() if canvas in rows]
            self._end_drawing(failed, "failed")
            for job in failed:
                job.tell(Failed())

    def _guarded_speech(self, jobs: list[Speaking], joining: bool) -> None:
        try:
            self._speak(jobs, joining)
        except Exception:
            log.exception("speaking %d answers failed; their requests are answered with an error", len(jobs))
            self._speeches.leave([job.speech for job in jobs])
            with self._wake:
                self.speaking.end([job for job in jobs if job in self.speaking.running], "failed")
            for job in jobs:
                job.tell(Failed())


def _is_due(row: Canvas, frames: int) -> bool:
    """Whether one of `frames`, spread evenly before the last AR step, falls on the step just done."""
    total = len(row.turns)
    return row.done * (frames + 1) // total > (row.done - 1) * (frames + 1) // total
