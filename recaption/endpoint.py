"""One OpenAI-compatible server: one exchange with it, what its failures mean, and whether it is there."""

import base64
import json
import random
from typing import Any

import aiohttp

from pipelines.errors import HarmonError
from recaption.engines import ENDS, Answer, Question
from recaption.prompt import Sampling
from recaption.window import Window

MOST_REPLY_BYTES = 4 << 20  # of one reply; a caption has some thousand
_CONNECT_SECONDS = 10.0
_BUSY = frozenset({429, 503})
_SICK = frozenset({408, 409, 425, 500, 502, 504})
_REFUSED = frozenset({400, 413, 415, 422})
_LONGEST_REST = 10.0  # seconds that a busy server is left alone where it does not say how long
_JITTER = 1.25  # clients that were sent away together do not come back together


class Busy(Exception):
    """The server has too much to do (429, 503); `after`: seconds it asks to be left alone."""

    def __init__(self, status: int, after: float | None) -> None:
        super().__init__(f"answered {status}")
        self.after = after


class Absent(Exception):
    """Nobody accepts connections."""


class Fault(Exception):
    """An exchange that went wrong and may go well another time; `refusal`: what it is called when it never does."""

    def __init__(self, what: str, refusal: str) -> None:
        super().__init__(what)
        self.refusal = refusal


class Endpoint:
    """A server under its base address, such as http://127.0.0.1:8000."""

    def __init__(self, address: str, model: str, most: int) -> None:
        self.address = address.rstrip("/")
        self.model = model
        self.window = Window(most)
        self.in_flight = 0
        """Requests under way, with those that wait to be tried again or for a verdict on the server."""
        self.up = False
        self.faults = 0
        """Exchanges that went wrong since its last answer."""
        self.refusals = 0
        """Questions that it would not answer since its last answer."""
        self.trouble = "accepts no connection"
        """What was wrong with it last."""
        self.version = "unknown"
        self.rests_until = 0.0
        self._rests = 0
        self._url = f"{self.address}/v1/chat/completions"

    def room(self, now: float) -> int:
        """Requests that it may be given now."""
        return self.window.limit - self.in_flight if self.up and now >= self.rests_until else 0

    async def is_there(self, session: aiohttp.ClientSession) -> bool:
        """Whether it accepts connections, is in health by its own word, and serves the model.

        Raises:
            HarmonError: it answers, and does not serve the model, or lets nobody in.
        """
        try:
            async with session.get(f"{self.address}/v1/models", timeout=_short()) as response:
                status, body = response.status, await _read(response)
            async with session.get(f"{self.address}/version", timeout=_short()) as response:
                said = await _read(response) if response.status == 200 else b"{}"
            async with session.get(f"{self.address}/health", timeout=_short()) as response:
                well = response.status < 500  # not every server has the path, or shows it to everybody
        except (aiohttp.ClientError, TimeoutError, OSError, Fault):
            return False
        if status in (401, 403):
            raise HarmonError(f"The server at {self.address} answered {status}; set its key in VLLM_API_KEY.")
        served = _served(body) if status == 200 else None
        if served is not None and self.model not in served:
            raise HarmonError(
                f"The server at {self.address} does not serve the model '{self.model}'; it serves "
                f"{', '.join(served) or 'none'}. Name it with served_model."
            )
        self.version = _version(said)
        return well and status < 500

    def rest(self, now: float, after: float | None) -> None:
        """Leave it alone for a while: no shorter than it asks, else longer each time, never in step with others."""
        self._rests += 1
        wait = min(_LONGEST_REST, 0.1 * 2 ** min(self._rests, 10)) / _JITTER if after is None else after
        self.rests_until = max(self.rests_until, now + wait * random.uniform(1.0, _JITTER))

    def answered(self) -> None:
        """A text came: it is well."""
        self.window.answered(self.in_flight)
        self._rests = self.faults = self.refusals = 0

    def came_back(self) -> None:
        """It may be asked again, as if for the first time."""
        self.up = True
        self.faults = self.refusals = 0
        self.window = Window(self.window.most)

    async def ask(self, session: aiohttp.ClientSession, question: Question, image: bytes | None) -> Answer:
        """One exchange; `image`: the question's, made. The answer's seconds, attempts are the caller's to fill in.

        Raises:
            Busy, Absent, Fault: as they say.
            HarmonError: it does not serve the model, or lets nobody in.
        """
        try:
            body = self._body(question, image)
            async with session.post(self._url, data=body, headers=_JSON, allow_redirects=False) as got:
                status, retry_after, body = got.status, got.headers.get("Retry-After"), await _read(got)
        except aiohttp.ClientConnectorError as error:
            raise Absent(str(error)) from None
        except aiohttp.ConnectionTimeoutError:
            raise Absent("it accepts no connection in time") from None
        except TimeoutError:
            raise Fault("did not answer within the deadline", "timed_out") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Fault(f"broke off the exchange ({type(error).__name__})", "broken_off") from None
        if status == 200:
            return self._answer(body)
        if status in _BUSY:
            raise Busy(status, _seconds(retry_after))
        if status in _SICK:
            raise Fault(f"answered {status}: {_words(body)}", "server_error")
        if status in _REFUSED:
            reason = "prompt_too_long" if b"maximum context length" in body else "refused_by_server"
            return Answer(None, reason, None, None, None, 0.0, 0, self.address, f"{status}: {_words(body)}")
        raise HarmonError(f"The vLLM server at {self.address} answered {status}: {_words(body)}")

    def _body(self, question: Question, image: bytes | None) -> bytes:
        said = {"model": self.model, "messages": chat(question.message, image), **sampled(question.sampling)}
        return json.dumps(said).encode()

    def _answer(self, body: bytes) -> Answer:
        """The fields used of a chat completion, checked."""
        try:
            reply = json.loads(body)
            choice, usage = reply["choices"][0], reply["usage"]
            content, finish = choice["message"]["content"], choice["finish_reason"]
            tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (ValueError, KeyError, IndexError, TypeError):
            raise Fault("sent something that is no chat completion", "broken_reply") from None
        if not isinstance(content, str | None) or not isinstance(finish, str):
            raise Fault("sent something that is no chat completion", "broken_reply")
        if finish not in ENDS:  # "abort", "repetition", ...: vLLM stopped, not the model
            raise Fault(f"ended its text by '{finish}'", "unfinished")
        if content is not None and not content.isprintable():
            content = content.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8
        return Answer(content or "", None, finish, *tokens, 0.0, 0, self.address)


def chat(message: str, image: bytes | None) -> list[dict[str, Any]]:
    """The messages of an OpenAI-compatible chat, the image as a data URI."""
    if image is None:
        return [{"role": "user", "content": message}]
    data = base64.b64encode(image).decode("ascii")
    shown = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    return [{"role": "user", "content": [shown, {"type": "text", "text": message}]}]


def sampled(sampling: Sampling) -> dict[str, Any]:
    """The request's fields that say how to sample; nothing is left to the model folder's own preferences.

    Qwen2.5's generation_config.json asks for top_k 20, top_p 0.8 and a repetition penalty of 1.05, and a server
    without `--generation-config vllm` would follow it.
    """
    fields: dict[str, Any] = NEUTRAL | {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.method == "random":
        fields |= {"top_p": sampling.top_p, "seed": sampling.seed}
    return fields


NEUTRAL: dict[str, float] = {
    "top_p": 1.0,
    "top_k": 0,  # all of the vocabulary
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Every field by which a model folder's preferences could change what is drawn, at the value that does nothing."""


def deadline(seconds: float) -> aiohttp.ClientTimeout:
    """For one exchange, a drip of bytes included."""
    return aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)


_JSON = {"Content-Type": "application/json"}


def _short() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=10.0, sock_connect=5.0)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, which is not larger than MOST_REPLY_BYTES."""
    length = response.content_length
    if length is not None and length <= MOST_REPLY_BYTES and "Content-Encoding" not in response.headers:
        return await response.read()
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > MOST_REPLY_BYTES:
            response.close()
            raise Fault(f"sent more than {MOST_REPLY_BYTES >> 20} MiB", "broken_reply")
    return b"".join(parts)


def _served(body: bytes) -> list[str] | None:
    """Names of the models in a reply of /v1/models, or None if it is none."""
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def _version(body: bytes) -> str:
    try:
        return f"vllm {json.loads(body)['version']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header in seconds; its form as a date is left aside."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


def _words(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:200]
