"""A judge behind an OpenAI-compatible chat completions API: one question about one picture at a time.

A question is asked again while it goes wrong in a way that may pass (no connection, 408, 409, 425, 429, 5xx, a reply
that breaks off), up to `attempts` times; then its row fails with a reason, and the others go on. Wrong keys, an unknown
model and a server that answers nobody end the run with an error: every answer had by then is in the journal.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import Field

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import Settings
from pipelines.workspace import Journal

VERSION = 1  # raised when equal settings and questions would be asked otherwise
KEY = "OPENAI_API_KEY"
MOST_REPLY_BYTES = 4 << 20
MOST_PICTURE_BYTES = 20 << 20
FAILED_IN_A_ROW = 20  # questions that fail with no answer between them: then the server is not asked any more
LONGEST_REST = 30.0  # seconds that a busy server is left alone at most, whatever it asks for
_PASSES = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({400, 413, 415, 422})
_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}

Item = TypeVar("Item")
Row = TypeVar("Row")


class JudgeSettings(Settings):
    """Which judge, and how it is asked."""

    endpoint: str
    """Base address, such as https://api.openai.com or http://127.0.0.1:8000."""
    model: str
    """Name that the server knows it by; it stands beside every score."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=2000, ge=1)
    seed: int | None = None
    deadline_seconds: float = Field(default=120.0, gt=0)
    """Of one exchange, as a whole."""
    attempts: int = Field(default=5, ge=1)
    """Of one question."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Questions in flight."""

    @property
    def sampling(self) -> dict[str, Any]:
        """What decides an answer besides the model and the question."""
        told: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return told if self.seed is None else told | {"seed": self.seed}


@dataclass(frozen=True)
class Question:
    """A picture and what is asked about it."""

    text: str
    picture: bytes
    system: str = ""

    @property
    def identity(self) -> list[str]:
        """What names it, without the picture's bytes."""
        return [self.system, self.text, sha256_hex(self.picture)]


PASSING = frozenset({"absent", "broken_off", "malformed_reply", "server_error", "timed_out"})
"""Reasons of replies that another run may do away with."""


@dataclass(frozen=True)
class Reply:
    """What came of a question."""

    text: str | None
    """None where it was not answered."""
    reason: str = ""
    """Why not, in a word; `cut_off` also beside a text that reached `max_tokens`."""
    detail: str = ""
    model: str = ""
    """What the server called the model that answered."""


class _Passing(Exception):
    """An exchange that may go well another time; `after`: seconds to wait, where the server says so."""

    def __init__(self, reason: str, detail: str, after: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.after = reason, detail, after


class Judge:
    """Asks one model; answers are kept in a journal, and no question whose answer is there is asked again. Only one
    process at a time may write the journal."""

    def __init__(self, settings: JudgeSettings, journal: Journal) -> None:
        """Raises ConfigurationError where the endpoint is no http address."""
        base = settings.endpoint.rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise ConfigurationError(f"The judge's endpoint {base!r} is no http address; write http://HOST:PORT.")
        self.settings = settings
        self._url = f"{base}/chat/completions" if base.endswith("/v1") else f"{base}/v1/chat/completions"
        self._journal = journal
        self._known: dict[str, Reply] = {
            entry["key"]: Reply(entry["text"], entry["reason"], "", entry["model"]) for entry in journal.entries()
        }
        key = os.environ.get(KEY)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=settings.concurrency),
            timeout=httpx.Timeout(settings.deadline_seconds, connect=min(10.0, settings.deadline_seconds)),
            trust_env=False,
        )
        self._failed = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def ask(self, question: Question, turn: int = 0) -> Reply:
        """One answer; `turn` counts how often the same is asked anew because no answer could be read.

        Raises:
            HarmonError: the server lets nobody in, does not know the model, or answers nobody.
        """
        told = [VERSION, self.settings.model, self.settings.sampling, question.identity, turn]
        key = sha256_hex(canonical_json(told))
        if known := self._known.get(key):
            return known
        reply = self._asked(question)
        if reply.text is not None:
            with self._lock:
                self._journal.append({"key": key, "text": reply.text, "reason": reply.reason, "model": reply.model})
                self._known[key] = reply
        return reply

    def each(self, items: Iterable[Item], work: Callable[[Item], Row]) -> Iterator[Row]:
        """`work` of every item, in their order, `concurrency` at a time; few are read ahead."""
        waiting: deque[Future[Row]] = deque()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(work, item))
                    if len(waiting) >= 2 * self.settings.concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()

    def _asked(self, question: Question) -> Reply:
        if len(question.picture) > MOST_PICTURE_BYTES:
            return Reply(None, "picture_too_large", f"{len(question.picture):,} bytes")
        body = json.dumps(self._body(question)).encode()
        for attempt in range(self.settings.attempts):
            self._stop_if_gone()
            try:
                reply = self._exchange(body)
            except _Passing as passing:
                last = passing
                if attempt + 1 < self.settings.attempts:
                    wait = min(8.0, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)
                    time.sleep(wait if passing.after is None else min(LONGEST_REST, passing.after))
            else:
                with self._lock:
                    self._failed = 0
                return reply
        with self._lock:
            self._failed += 1
        self._stop_if_gone(last)
        return Reply(None, last.reason, last.detail)

    def _stop_if_gone(self, last: _Passing | None = None) -> None:
        if self._failed >= FAILED_IN_A_ROW:
            detail = f" ({last.detail})" if last else ""
            raise HarmonError(
                f"The judge at {self._url} answered none of {self._failed} questions in a row{detail}; see to it, then "
                "run again: answers so far are kept."
            )

    def _body(self, question: Question) -> dict[str, Any]:
        kind = next((kind for head, kind in _SIGNATURES.items() if question.picture.startswith(head)), "image/png")
        url = f"data:{kind};base64,{base64.b64encode(question.picture).decode()}"
        said = [{"type": "text", "text": question.text}, {"type": "image_url", "image_url": {"url": url}}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": said}]
        if question.system:
            messages.insert(0, {"role": "system", "content": question.system})
        return {"model": self.settings.model, "messages": messages, **self.settings.sampling}

    def _exchange(self, body: bytes) -> Reply:
        """One request. Raises _Passing, and HarmonError where no other request can go better."""
        ends = time.monotonic() + self.settings.deadline_seconds
        data = bytearray()
        try:
            with self._client.stream(
                "POST", self._url, content=body, headers={"Content-Type": "application/json"}
            ) as got:
                for chunk in got.iter_bytes():
                    data += chunk
                    if len(data) > MOST_REPLY_BYTES:
                        raise _Passing("malformed_reply", f"more than {MOST_REPLY_BYTES:,} bytes")
                    if time.monotonic() > ends:
                        raise _Passing("timed_out", "it did not finish within the deadline")
        except httpx.TimeoutException:
            raise _Passing("timed_out", "it did not answer within the deadline") from None
        except httpx.ConnectError as error:
            raise _Passing("absent", f"no connection: {error}") from None
        except httpx.HTTPError as error:
            raise _Passing("broken_off", type(error).__name__) from None
        words = " ".join(bytes(data[:2000]).decode("utf-8", "replace").split())[:200]
        if got.status_code == 200:
            return _reply(bytes(data))
        if got.status_code in _PASSES or got.status_code >= 500:
            raise _Passing("server_error", f"{got.status_code}: {words}", _seconds(got.headers.get("Retry-After")))
        if got.status_code in _REFUSED:
            return Reply(None, "refused_by_server", f"{got.status_code}: {words}")
        what = f"set its key in {KEY}" if got.status_code in (401, 403) else "see its address and the model's name"
        raise HarmonError(f"The judge at {self._url} answered {got.status_code} ({words}); {what}.")


def readable(
    judge: Judge, question: Question, read: Callable[[str], Item | None], turns: int
) -> tuple[Item | None, Reply]:
    """What `read` finds in the judge's answer, which is asked for `turns` times until it finds something.

    Where it finds nothing the reply has the reason `unreadable_reply` and the text that came last.
    """
    reply = Reply(None, "not_asked")
    for turn in range(turns):
        reply = judge.ask(question, turn)
        if reply.text is None:
            return None, reply
        if (found := read(reply.text)) is not None:
            return found, reply
    return None, replace(reply, reason="unreadable_reply", detail=(reply.text or "")[:200])


def _reply(body: bytes) -> Reply:
    """The fields used of a chat completion, checked. Raises _Passing where it is none."""
    try:
        told = json.loads(body)
        choice = told["choices"][0]
        text, ended, model = choice["message"].get("content"), choice.get("finish_reason"), told.get("model", "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _Passing("malformed_reply", f"no chat completion ({type(error).__name__})") from None
    if not isinstance(text, str):
        refusal = choice["message"].get("refusal")
        return Reply(None, "refused_by_judge", str(refusal or ended)[:200], str(model))
    readable = text.encode("utf-8", "replace").decode()  # JSON may hold half of a surrogate pair, a file may not
    return Reply(readable, "cut_off" if ended == "length" else "", "", str(model)[:200])


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header in seconds; its form as a date is left aside."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
