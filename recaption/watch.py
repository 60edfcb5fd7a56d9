"""Which servers are asked: those that fail are left out until they are well, and told of when none comes back."""

import asyncio
import io
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import aiohttp
from PIL import Image

from pipelines.errors import HarmonError
from recaption.endpoint import Absent, Busy, Endpoint, Fault
from recaption.engines import Answer, Question

PROBE = "Say yes."  # what a server is asked that has answered nothing yet
_GREETINGS = 3  # looks at the servers at the start
_LOOK_EVERY = 0.25, 5.0  # seconds between looks at a server that is left out: the first, the longest


class Watched(Protocol):
    """Who asks the servers."""

    def is_back(self, endpoint: Endpoint) -> None:
        """It is well: what it would not answer was at fault."""

    def is_sick(self, endpoint: Endpoint) -> None:
        """It failed its probe: what it would not answer may be as good as any."""

    def fail(self, error: HarmonError) -> None:
        """Nobody can go on."""

    async def exchange(self, endpoint: Endpoint, question: Question) -> Answer:
        """Ask it. Raises as `Endpoint.ask` does."""
        ...


class Watch:
    """Leaves servers out and takes them back. One that went wrong has to answer a question before it is back."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        session: aiohttp.ClientSession,
        asks: Watched,
        start: Callable[[Coroutine[Any, Any, None]], None],
        patience: float,
    ) -> None:
        """`start`: has a coroutine run; `patience`: seconds that servers which are all left out are waited for."""
        self._endpoints = endpoints
        self._session = session
        self._asks = asks
        self._start = start
        self._patience = patience
        self._probing = 0
        self._first: Question | None = None
        self._good: Question | None = None

    @property
    def any_answer(self) -> bool:
        """Whether any server has written a text yet."""
        return self._good is not None

    def asked(self, question: Question) -> None:
        """A question is sent: probes are sampled, and shown an image, as the first one is."""
        self._first = self._first or question

    def answered(self, question: Question) -> None:
        """A text came for a question: that is the next probe. Its image must be at hand by then."""
        self._good = question

    async def greet(self) -> None:
        """Look who is there. Raises HarmonError: nobody is, or one does not serve the model."""
        for _ in range(_GREETINGS):
            there = await asyncio.gather(*(endpoint.is_there(self._session) for endpoint in self._endpoints))
            if any(there):
                break
            await asyncio.sleep(0.5)
        else:
            addresses = ", ".join(endpoint.address for endpoint in self._endpoints)
            raise HarmonError(f"No vLLM server answers at {addresses}; start it, or name others as endpoints.")
        for endpoint, is_there in zip(self._endpoints, there, strict=True):
            if is_there:
                endpoint.came_back()
            else:
                self._start(self._wait_for(endpoint, probe=False))

    def leave_out(self, endpoint: Endpoint, why: str, probe: bool) -> None:
        """Have this server asked nothing until it is back; `probe`: and has answered what was answered before."""
        endpoint.trouble = why
        if not endpoint.up:
            return
        endpoint.up = False
        self._start(self._wait_for(endpoint, probe))
        if not any(other.up for other in self._endpoints):
            self._start(self._lose_patience())

    async def _wait_for(self, endpoint: Endpoint, probe: bool) -> None:
        wait, longest = _LOOK_EVERY
        try:
            while True:
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(longest, 2 * wait)
                if await endpoint.is_there(self._session) and (not probe or await self._passes(endpoint)):
                    break
        except HarmonError as error:  # it is back with another model, or refuses what was answered
            self._asks.fail(error)
            return
        endpoint.came_back()
        self._asks.is_back(endpoint)

    async def _passes(self, endpoint: Endpoint) -> bool:
        """Whether it answers what was answered before, or, where nothing was, PROBE. Raises HarmonError: it refuses."""
        self._probing += 1
        try:
            answer = await self._asks.exchange(endpoint, self._good or self._simplest())
        except Busy:
            return True
        except (Absent, Fault) as problem:
            endpoint.trouble = str(problem)
            self._asks.is_sick(endpoint)
            return False
        finally:
            self._probing -= 1
        if answer.text is None:
            raise HarmonError(
                f"The vLLM server at {endpoint.address} {endpoint.trouble} and refuses even what has been answered "
                f"before: it answered {answer.detail}. See how it was started, then rerun: finished rows are kept."
            )
        return True

    def _simplest(self) -> Question:
        assert self._first
        return Question("", 0, PROBE, self._first.sampling, _grey if self._first.image else None)

    async def _lose_patience(self) -> None:
        """Fail when no server comes back in time; while one thinks about its probe, time stands still."""
        waited, tick = 0.0, min(0.25, self._patience)
        while waited < self._patience:
            await asyncio.sleep(tick)
            waited += 0.0 if self._probing else tick
            if any(endpoint.up for endpoint in self._endpoints):
                return
        troubles = "; ".join(f"{endpoint.address} {endpoint.trouble}" for endpoint in self._endpoints)
        self._asks.fail(
            HarmonError(
                f"No vLLM server is left, and none came back within {self._patience:.0f} s: {troubles}. "
                "See why, then rerun: finished rows are kept."
            )
        )


def _grey() -> bytes:
    """The simplest image."""
    out = io.BytesIO()
    Image.new("RGB", (56, 56), "grey").save(out, "JPEG")
    return out.getvalue()
