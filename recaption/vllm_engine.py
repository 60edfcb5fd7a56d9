"""The engine that asks running vLLM servers through their OpenAI-compatible chat completions.

One event loop in the caller's thread. It runs until something happened (an answer, a wait that ended, a server that
came back) and stops; then answers are handed over, and requests are sent for as long as there is room. So what is in
flight is exactly what has not been handed over, and no more is read ahead than fits.

A server whose exchanges go wrong in a row is asked nothing but a question that it has answered before, until it
answers that: so a sick server costs a handful of requests, and rows that no server survives fail alone.
"""

import asyncio
import os
import random
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import aiohttp

from pipelines.errors import HarmonError
from recaption.endpoint import Absent, Busy, Endpoint, Fault, deadline
from recaption.engines import PICTURE_THREADS, UNREADABLE, Answer, Answered, Question
from recaption.watch import Watch

_FAULTS = 5  # of one question, until it is given up
_TIMEOUTS = 2  # of one question: the deadline is long already
_FIRST_WAIT = 0.25  # seconds before a question is tried again; doubles with each fault
_FAULTS_IN_A_ROW = 5  # of one server with no answer between them: then it has to pass a probe
_REFUSALS_IN_A_ROW = 20  # likewise
_BUSY_SECONDS = 600.0  # a server that says nothing but "busy" is waited for this long


@dataclass
class _Asked:
    """A question on its way, with what happened to it so far."""

    question: Question
    began: float
    attempts: int = 0
    faults: list[str] = field(default_factory=list)
    """Names of what went wrong; the errors themselves would hold on to the pictures that were sent."""
    failed_at: Endpoint | None = None
    """Where it went wrong last: another endpoint with room is preferred."""


class VllmEngine:
    """Asks all `endpoints` at once, each as much as it takes (see `Window`); one that fails is left out until it
    is back."""

    batch_rows = batch_pictures = 1

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        concurrency: int = 640,
        deadline_seconds: float = 600.0,
        patience_seconds: float = 60.0,
    ) -> None:
        """`model`: the name they serve it under; `concurrency`: most requests in flight at each.

        `deadline_seconds` bounds one exchange; `patience_seconds`: how long endpoints that have all stopped
        answering are waited for.
        """
        self._endpoints = [Endpoint(address, model, concurrency) for address in dict.fromkeys(endpoints)]
        self._deadline = deadline_seconds
        self._patience = patience_seconds
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession
        self._watch: Watch
        self._ready: deque[_Asked] = deque()
        self._done: list[tuple[Endpoint, Question, Answer]] = []
        self._held: list[tuple[Endpoint, _Asked, Answer]] = []
        """Answers without a text that wait until their server has passed its probe."""
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = 0  # questions taken and not handed over
        self._last_answer = 0.0
        self._refused_before = 0  # questions refused before there was a single text
        self._closing = False
        self._painters = ThreadPoolExecutor(PICTURE_THREADS, "picture")

    @property
    def version(self) -> str:
        return next((endpoint.version for endpoint in self._endpoints if endpoint.version != "unknown"), "unknown")

    def __enter__(self) -> Self:
        """Raises HarmonError: no endpoint answers, or one does not serve the model."""
        try:
            self._loop.run_until_complete(self._open())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing = True  # before the loop runs again: what ended since it stopped must not stop it now
        self._loop.run_until_complete(self._close())
        self._painters.shutdown(cancel_futures=True)
        self._loop.close()

    def answers(self, lots: Iterator[Sequence[Question]]) -> Iterator[Answered]:
        """As `Engine.answers` says. One pass at a time."""
        self._last_answer = self._loop.time()
        current: Iterator[Question] = iter(())
        more = True
        while True:
            self._send_again()
            while more and not self._failure and self._room():
                if (question := next(current, None)) is not None:
                    self._send(_Asked(question, self._loop.time()))
                elif (lot := next(lots, None)) is None:
                    more = False
                elif lot:
                    current = iter(lot)
                else:
                    break
            if not more and not self._unanswered:
                return
            if not self._failure:
                self._loop.run_forever()
            if self._done:
                done, self._done = self._done, []
                yield [(question, answer) for _, question, answer in done]
                self._unanswered -= len(done)
                for endpoint, _, _ in done:
                    endpoint.in_flight -= 1
            elif self._failure:
                raise self._failure

    # What is sent

    def _room(self) -> bool:
        return not self._ready and self._freest() is not None

    def _freest(self, unlike: Endpoint | None = None) -> Endpoint | None:
        """The endpoint with the emptiest window, `unlike` only where no other has room: a question that waits for
        a place elsewhere would hold up all behind it."""
        now = self._loop.time()
        free = [endpoint for endpoint in self._endpoints if endpoint.room(now) > 0]
        return min(free, key=lambda one: (one is unlike, one.in_flight / one.window.limit), default=None)

    def _send(self, asked: _Asked) -> None:
        self._watch.asked(asked.question)
        self._unanswered += 1
        self._ready.append(asked)
        self._send_again()

    def _send_again(self) -> None:
        while self._ready and (endpoint := self._freest(self._ready[0].failed_at)) is not None:
            endpoint.in_flight += 1
            self._start(self._ask(endpoint, self._ready.popleft()))

    def _wake(self) -> None:
        """Something happened: have the loop return to `answers`."""
        if not self._closing:
            self._loop.stop()

    def _start(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends in an error nobody foresaw ends the pass with it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    # What happens to it

    async def _ask(self, endpoint: Endpoint, asked: _Asked) -> None:
        asked.attempts += 1
        sent = self._loop.time()
        try:
            answer = await self.exchange(endpoint, asked.question)
        except Busy as busy:
            endpoint.in_flight -= 1
            self._hold_off(endpoint, asked, busy, sent)
        except Absent as absent:
            endpoint.in_flight -= 1
            asked.attempts -= 1  # nobody has seen it
            self._ready.appendleft(asked)
            self._watch.leave_out(endpoint, str(absent), probe=False)
        except Fault as fault:
            self._failed(endpoint, asked, fault, sent)
        except HarmonError as error:
            self.fail(error)
        else:
            if answer.text is not None:
                endpoint.answered()
                self._answered(endpoint, asked, answer)
            elif answer is UNREADABLE:
                asked.attempts -= 1  # nobody was asked
                self._answered(endpoint, asked, answer)
            else:
                self._refused(endpoint, asked, answer)
        self._wake()

    async def exchange(self, endpoint: Endpoint, question: Question) -> Answer:
        """Ask, with the image made for this once. Raises as `Endpoint.ask` does."""
        image = None
        if question.image is not None:
            image = await self._loop.run_in_executor(self._painters, question.image)
            if image is None:
                return UNREADABLE
        answer = await endpoint.ask(self._session, question, image)
        if answer.text is not None:  # its image is kept: by the next probe the shard that has it may be finished
            self._watch.answered(question if image is None else replace(question, image=lambda: image))
        return answer

    def _answered(self, endpoint: Endpoint, asked: _Asked, answer: Answer) -> None:
        now = self._loop.time()
        self._last_answer = now
        self._done.append(
            (endpoint, asked.question, replace(answer, seconds=now - asked.began, attempts=asked.attempts))
        )

    def _hold_off(self, endpoint: Endpoint, asked: _Asked, busy: Busy, sent: float) -> None:
        """The server is too busy: fewer requests, after a rest. The question goes first wherever there is room."""
        now = self._loop.time()
        endpoint.window.refused(sent)
        if busy.after is not None or now >= endpoint.rests_until:
            endpoint.rest(now, busy.after)
            self._loop.call_at(endpoint.rests_until + 1e-3, self._wake)
        self._ready.appendleft(asked)
        rested = min((max(now, one.rests_until) for one in self._endpoints if one.up), default=now)
        if rested - self._last_answer > _BUSY_SECONDS:
            error = f"{busy} and is to be left alone for longer than {_BUSY_SECONDS:.0f} s without an answer"
            what = "see what else it serves, then rerun: finished rows are kept"
            self.fail(HarmonError(f"The vLLM server at {endpoint.address} {error}; {what}."))

    def _refused(self, endpoint: Endpoint, asked: _Asked, answer: Answer) -> None:
        """The server will not answer this question; where it refuses all of them it is set up wrongly."""
        endpoint.refusals += 1
        if not self._watch.any_answer:
            self._refused_before += 1
            if self._refused_before >= _REFUSALS_IN_A_ROW:
                error = f"refused the first {self._refused_before} questions and answered none"
                what = f"it answered {answer.detail}. See how it was started, then rerun."
                self.fail(HarmonError(f"The vLLM server at {endpoint.address} {error}; {what}"))
        elif endpoint.refusals >= _REFUSALS_IN_A_ROW:
            why = f"refused {endpoint.refusals} questions in a row ({answer.detail})"
            self._watch.leave_out(endpoint, why, probe=True)
        self._without_text(endpoint, asked, answer)

    def _failed(self, endpoint: Endpoint, asked: _Asked, fault: Fault, sent: float) -> None:
        """Try again after a while, or give the question up: the others go on."""
        asked.faults.append(fault.refusal)
        asked.failed_at = endpoint
        endpoint.faults += 1
        if fault.refusal == "timed_out":
            endpoint.window.refused(sent)  # too much for it, or it hangs
        if endpoint.faults >= _FAULTS_IN_A_ROW:
            self._watch.leave_out(endpoint, str(fault), probe=True)
        if len(asked.faults) < _FAULTS and asked.faults.count("timed_out") < _TIMEOUTS:
            wait = _FIRST_WAIT * 2 ** (len(asked.faults) - 1) * random.uniform(0.5, 1.0)
            self._loop.call_later(wait, self._try_again, endpoint, asked)  # it keeps its place as long as it waits
            return
        given_up = Answer(None, fault.refusal, None, None, None, 0.0, 0, endpoint.address, str(fault))
        self._without_text(endpoint, asked, given_up)

    def _without_text(self, endpoint: Endpoint, asked: _Asked, answer: Answer) -> None:
        """The row fails alone, unless its server turns out to be sick."""
        if endpoint.up:
            self._answered(endpoint, asked, answer)
        else:
            self._held.append((endpoint, asked, answer))

    def _try_again(self, endpoint: Endpoint, asked: _Asked) -> None:
        endpoint.in_flight -= 1
        self._ready.append(asked)
        self._wake()

    # Which servers are there (see `Watch`)

    def is_back(self, endpoint: Endpoint) -> None:
        """Rows that a well server would not answer fail alone."""
        for _, asked, answer in self._take_held(endpoint):
            self._answered(endpoint, asked, answer)
        self._wake()

    def is_sick(self, endpoint: Endpoint) -> None:
        """What a sick server would not answer is asked again, of others or later."""
        for _, asked, _ in self._take_held(endpoint):
            endpoint.in_flight -= 1
            asked.faults.clear()
            self._ready.append(asked)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End the pass, after what has been answered is handed over."""
        self._failure = self._failure or error
        self._wake()

    def _take_held(self, endpoint: Endpoint) -> list[tuple[Endpoint, _Asked, Answer]]:
        taken = [one for one in self._held if one[0] is endpoint]
        self._held = [one for one in self._held if one[0] is not endpoint]
        return taken

    async def _open(self) -> None:
        key = os.environ.get("VLLM_API_KEY")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            timeout=deadline(self._deadline),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )
        self._watch = Watch(self._endpoints, self._session, self, self._start, self._patience)
        await self._watch.greet()

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()
