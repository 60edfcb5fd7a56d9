"""The engine that asks running vLLM servers through their OpenAI-compatible chat completions.

One event loop in the caller's thread. It runs until something happened (an answer, a wait that ended, a server that
came back) and stops; then answers are handed over, and requests are sent for as long as there is room. So what is in
flight is exactly what has not been handed over, and no more is read ahead than fits.
"""

import asyncio
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import aiohttp

from pipelines.errors import HarmonError
from recaption.endpoint import Absent, Busy, Endpoint, Fault, deadline
from recaption.engines import Answer, Answered, Question

_FAULTS = 5  # of one question, until it is given up
_TIMEOUTS = 2  # of one question: the deadline is long already
_FIRST_WAIT = 0.25  # seconds before a question is tried again; doubles with each fault
_GREETINGS = 3  # looks at the servers when the engine is opened
_GIVEN_UP_IN_A_ROW = 20  # questions given up with no answer between them: then it is the server
_BUSY_SECONDS = 600.0  # a server that says nothing but "busy" is waited for this long


@dataclass
class _Asked:
    """A question on its way, with what happened to it so far."""

    question: Question
    began: float
    attempts: int = 0
    faults: list[Fault] = field(default_factory=list)
    failed_at: Endpoint | None = None
    """Where it went wrong last: another endpoint gets it next, if there is one."""


class VllmEngine:
    """Asks all `endpoints` at once, each as much as it takes (see `Window`); one that fails is left out until it
    is back."""

    batch_rows = 1

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        concurrency: int = 256,
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
        self._ready: deque[_Asked] = deque()
        self._done: list[tuple[Endpoint, Question, Answer]] = []
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = 0  # questions taken and not handed over
        self._last_answer = 0.0
        self._answers = 0
        self._given_up = 0
        self._closing = False

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
        """The endpoint with the emptiest window, other than `unlike` where another one is up."""
        now = self._loop.time()
        if unlike is not None and not any(other.up for other in self._endpoints if other is not unlike):
            unlike = None
        free = [endpoint for endpoint in self._endpoints if endpoint is not unlike and endpoint.room(now) > 0]
        return min(free, key=lambda endpoint: endpoint.in_flight / endpoint.window.limit, default=None)

    def _send(self, asked: _Asked) -> None:
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

    def _start(self, what: "asyncio._CoroutineLike[None]") -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ends in an error nobody foresaw ends the pass with it."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
            self._wake()

    # What happens to it

    async def _ask(self, endpoint: Endpoint, asked: _Asked) -> None:
        asked.attempts += 1
        sent = self._loop.time()
        try:
            answer = await endpoint.ask(self._session, asked.question)
        except Busy as busy:
            endpoint.in_flight -= 1
            self._hold_off(endpoint, asked, busy, sent)
        except Absent as absent:
            endpoint.in_flight -= 1
            asked.attempts -= 1  # nobody has seen it
            self._ready.appendleft(asked)
            self._lost(endpoint, str(absent))
        except Fault as fault:
            self._failed(endpoint, asked, fault, sent)
        except HarmonError as error:
            self._failure = self._failure or error
        else:
            endpoint.window.answered(endpoint.in_flight)
            endpoint.rested()
            self._answers += 1
            self._given_up = 0
            self._answered(endpoint, asked, answer)
        self._wake()

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
        if now >= endpoint.rests_until:
            endpoint.rest(now, busy.after)
            self._loop.call_at(endpoint.rests_until + 1e-3, self._wake)
        self._ready.appendleft(asked)
        if now - self._last_answer > _BUSY_SECONDS:
            self._failure = HarmonError(
                f"The vLLM server at {endpoint.address} {busy} for {_BUSY_SECONDS:.0f} s and nothing else came; "
                "see what else it serves, then rerun: finished rows are kept."
            )

    def _failed(self, endpoint: Endpoint, asked: _Asked, fault: Fault, sent: float) -> None:
        """Try again after a while, or give the question up: the others go on."""
        asked.faults.append(fault)
        asked.failed_at = endpoint
        if fault.refusal == "timed_out":
            endpoint.window.refused(sent)  # too much for it, or it hangs
        timeouts = sum(one.refusal == "timed_out" for one in asked.faults)
        if len(asked.faults) < _FAULTS and timeouts < _TIMEOUTS:
            endpoint.in_flight -= 1
            wait = _FIRST_WAIT * 2 ** (len(asked.faults) - 1) * random.uniform(0.5, 1.0)
            self._loop.call_later(wait, self._try_again, asked)
            return
        self._given_up += 1
        if self._answers and self._given_up < _GIVEN_UP_IN_A_ROW:
            given_up = Answer(None, fault.refusal, None, None, None, 0.0, 0, endpoint.address)
            self._answered(endpoint, asked, given_up)
            return
        self._failure = self._failure or HarmonError(
            f"The vLLM server at {endpoint.address} {fault} (tried {asked.attempts} times, and nothing else was "
            "answered); see whether it is well, then rerun: finished rows are kept."
        )

    def _try_again(self, asked: _Asked) -> None:
        self._ready.append(asked)
        self._wake()

    # Which servers are there

    async def _open(self) -> None:
        key = os.environ.get("VLLM_API_KEY")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            timeout=deadline(self._deadline),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )
        for _ in range(_GREETINGS):
            await asyncio.gather(*(endpoint.greet(self._session) for endpoint in self._endpoints))
            if any(endpoint.up for endpoint in self._endpoints):
                break
            await asyncio.sleep(0.5)
        else:
            addresses = ", ".join(endpoint.address for endpoint in self._endpoints)
            raise HarmonError(f"No vLLM server answers at {addresses}; start it, or name others as endpoints.")
        for endpoint in self._endpoints:
            if not endpoint.up:
                self._start(self._watch(endpoint))

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_session"):
            await self._session.close()

    def _lost(self, endpoint: Endpoint, why: str) -> None:
        if not endpoint.up:
            return
        endpoint.up = False
        self._start(self._watch(endpoint))
        if not any(other.up for other in self._endpoints):
            self._start(self._lose_patience(why))

    async def _watch(self, endpoint: Endpoint) -> None:
        """Wait until a server is back."""
        try:
            await endpoint.come_back(self._session)
        except HarmonError as error:  # it is back with another model
            self._failure = self._failure or error
        endpoint.window = type(endpoint.window)(endpoint.window.most)
        self._wake()

    async def _lose_patience(self, why: str) -> None:
        """Fail when no server comes back in time."""
        end = self._loop.time() + self._patience
        while self._loop.time() < end:
            await asyncio.sleep(min(0.25, self._patience))
            if any(endpoint.up for endpoint in self._endpoints):
                return
        addresses = ", ".join(endpoint.address for endpoint in self._endpoints)
        self._failure = self._failure or HarmonError(
            f"No vLLM server is left: {addresses} accepted no connection for {self._patience:.0f} s ({why}); "
            "see why they ended, then rerun: finished rows are kept."
        )
        self._wake()
