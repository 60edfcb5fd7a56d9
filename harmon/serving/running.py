"""One request's jobs, from the event loop's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.types import Receive

from harmon.serving.engine import Full
from harmon.serving.jobs import Drawn, Event, Failed, Job, Spoken
from harmon.serving.refusal import busy, failed

R = TypeVar("R")
Tell = Callable[[Event], None]


class Running:
    """Events of jobs as they come, each with its job's number; ends when all jobs have."""

    def __init__(self, add: Callable[[Callable[[int], Tell]], Sequence[Job]]) -> None:
        """`add` makes jobs, each with the `tell` of its number, and hands them to the engine.

        Raises Refused (429) where the engine is full.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        try:
            self._jobs = add(self._tell)
        except Full as full:
            raise busy(full.seconds) from None

    def close(self) -> None:
        """Cancel the jobs; no matter to those that are done."""
        for job in self._jobs:
            job.cancelled = True

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Raises Refused (500) when a job has failed."""
        open_ = len(self._jobs)
        while open_:
            number, event = await self._queue.get()
            if isinstance(event, Failed):
                raise failed()
            if isinstance(event, Drawn) or (isinstance(event, Spoken) and event.ending is not None):
                open_ -= 1
            yield number, event

    def _tell(self, number: int) -> Tell:
        def told(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

        return told


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, R]) -> R | None:
    """What `work` gives; None where the client went away first, which cancels it. The request's body must have been
    read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
