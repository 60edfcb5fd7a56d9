"""The engine that asks a running vLLM server through its OpenAI-compatible chat completions."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from pipelines.errors import HarmonError
from recaption.engines import Answer
from recaption.prompt import Sampling

_ATTEMPTS = 6  # per message; doubling waits from 0.25 s give a server that answers "busy" about 8 s
_FIRST_WAIT = 0.25
_ATTEMPTS_WITHOUT_CONNECTION = 3  # a server that accepts no connection is dead: tell so within a second
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class _Transient(Exception):
    """An exchange that may go well if tried again; `connected` tells whether a server was there at all."""

    def __init__(self, what: str, connected: bool = True) -> None:
        super().__init__(what)
        self.connected = connected


class VllmEngine:
    """At most `concurrency` requests in flight over all `endpoints` together, which are asked in turn."""

    def __init__(
        self,
        endpoints: Sequence[str],
        model: str,
        concurrency: int = 32,
        batch_rows: int = 1024,
        deadline_seconds: float = 120.0,
    ) -> None:
        """`endpoints`: base addresses such as http://127.0.0.1:8000; `model`: the name they serve it under.

        `deadline_seconds` bounds one exchange: a slow server is waited for that long.
        """
        self._batch_rows = batch_rows
        self._model = model
        self._concurrency = concurrency
        self._turns = itertools.cycle([endpoint.rstrip("/") for endpoint in endpoints])
        self._loop = asyncio.new_event_loop()
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        timeout = httpx.Timeout(deadline_seconds, connect=5.0, pool=None)
        self._client = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False)

    @property
    def batch_rows(self) -> int:
        return self._batch_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    def answer(self, messages: Sequence[str], sampling: Sampling) -> list[Answer]:
        """One answer per message, in order, whatever the order they came back in.

        Raises:
            HarmonError: an endpoint is dead, stays busy for all attempts, or refuses the model name.
        """
        return self._loop.run_until_complete(self._answer_all(messages, sampling))

    async def _answer_all(self, messages: Sequence[str], sampling: Sampling) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(messages)
        waiting = iter(enumerate(messages))

        async def work() -> None:
            for place, message in waiting:
                answers[place] = await self._answer_one(message, sampling)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(messages))):
                    group.create_task(work())
        except* HarmonError as errors:
            raise errors.exceptions[0] from None
        return [answer for answer in answers if answer is not None]

    async def _answer_one(self, message: str, sampling: Sampling) -> Answer:
        started = time.perf_counter()
        for attempt in itertools.count(1):
            endpoint = next(self._turns)
            try:
                reply = await self._exchange(endpoint, message, sampling)
            except _Transient as failure:
                patience = _ATTEMPTS if failure.connected else _ATTEMPTS_WITHOUT_CONNECTION
                if attempt >= patience:
                    raise HarmonError(
                        f"The vLLM server at {endpoint} {failure} (tried {attempt} times); "
                        "see whether it still runs, then rerun: finished rows are kept."
                    ) from None
                await asyncio.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
            else:
                return _as_answer(reply, time.perf_counter() - started, attempt, endpoint)
        raise AssertionError("unreachable")

    async def _exchange(self, endpoint: str, message: str, sampling: Sampling) -> dict[str, Any] | str:
        """The server's JSON, or the one-word refusal of this message."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": message}],
            "max_tokens": sampling.max_tokens,
            "temperature": 0.0,  # greedy
            "repetition_penalty": 1.0,  # whatever the model's generation_config.json asks for
        }
        try:
            response = await self._client.post(f"{endpoint}/v1/chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise _Transient("accepts no connection", connected=False) from None
        except httpx.TransportError as error:
            raise _Transient(f"broke off the exchange ({type(error).__name__})") from None
        if response.status_code in _BUSY:
            raise _Transient(f"answered {response.status_code}")
        if response.status_code == 400:
            return "prompt_too_long" if "maximum context length" in response.text else "refused_by_server"
        if response.status_code != 200:
            detail = " ".join(response.text.split())[:200]
            raise HarmonError(f"The vLLM server at {endpoint} answered {response.status_code}: {detail}")
        return _read(response)


def _read(response: httpx.Response) -> dict[str, Any]:
    """The fields used of a chat completion, checked."""
    try:
        reply = response.json()
        choice, usage = reply["choices"][0], reply["usage"]
        content, finish = choice["message"]["content"], choice["finish_reason"]
        tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise _Transient("sent something that is no chat completion") from None
    if not isinstance(content, str | None) or not isinstance(finish, str):
        raise _Transient("sent something that is no chat completion")
    return {"content": content or "", "finish_reason": finish, "tokens": tokens}


def _as_answer(reply: dict[str, Any] | str, seconds: float, attempts: int, endpoint: str) -> Answer:
    if isinstance(reply, str):
        return Answer(None, reply, None, None, None, seconds, attempts, endpoint)
    tokens_in, tokens_out = reply["tokens"]
    return Answer(reply["content"], None, reply["finish_reason"], tokens_in, tokens_out, seconds, attempts, endpoint)
