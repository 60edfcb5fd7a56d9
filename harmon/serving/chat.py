"""POST /v1/chat/completions: questions about a picture, or without one."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response
from tokenizers.decoders import DecodeStream

from harmon.answering import AnswerConfig
from harmon.serving.asked import ChatAsked, Message
from harmon.serving.data_url import pixels_of
from harmon.serving.jobs import Speaking, Spoken
from harmon.serving.refusal import Refused, check_chars, too_late
from harmon.serving.running import Running, Tell
from harmon.serving.served import Served
from harmon.serving.speeches import Speech
from harmon.serving.sse import Chunks, EventStream, event


@dataclass(frozen=True)
class Wish:
    """The answer that a request wants, not yet begun, and how it is to be told."""

    speech: Speech
    stream: bool
    with_usage: bool
    """At the end of the stream."""


async def wish_of(served: Served, asked: ChatAsked) -> Wish:
    """Raises Refused where the answer cannot be given."""
    check_chars("messages", sum(len(one.text) for one in asked.messages), served.settings.text_chars)
    said, question = _turns(asked.messages)
    urls = [(number, url) for number, one in enumerate(_users(asked.messages)) for url in one.pictures]
    if len(urls) > 1:
        raise Refused(
            400, f"messages: {len(urls)} pictures; the model looks at one picture a conversation.", param="messages",
            code="too_many_images",
        )  # fmt: skip
    side, pictured, pixels = served.trained.px, 0, None
    if urls:
        pictured, url = urls[0]
        pixels = await _seen(served, url, side)
    slots = served.trained.slots(side) if urls else 0
    prompt = await to_thread.run_sync(served.trained.text.conversation_prompt, said, question, slots, pictured)
    config = AnswerConfig(
        max_new_tokens=_room(served, asked, len(prompt)),
        temperature=asked.temperature or 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
    )
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    with_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Wish(Speech(prompt, pixels, config, seed), bool(asked.stream), with_usage)


async def answer(served: Served, wish: Wish) -> Response:
    """The whole answer as one JSON document."""
    speech, tokens = wish.speech, list[int]()
    one = _spoken(served, speech)
    try:
        async with asyncio.timeout(served.settings.deadline):
            async for _, spoken in one.events():
                assert isinstance(spoken, Spoken)
                tokens += spoken.tokens
    except TimeoutError:
        raise too_late(served.settings.deadline) from None
    finally:
        one.close()
    message = {"role": "assistant", "content": served.trained.text.decode(tokens), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": speech.ending, "logprobs": None}
    head = _head(served, "chat.completion")
    return JSONResponse({**head, "choices": [choice], "usage": _usage(speech, len(tokens))})


def streamed(served: Served, wish: Wish) -> Response:
    """The answer as server-sent events, a piece at a time."""
    return EventStream(_spoken(served, wish.speech), _chunks(served, wish), served.settings.deadline)


def _chunks(served: Served, wish: Wish) -> Chunks:
    head, speech = _head(served, "chat.completion.chunk"), wish.speech

    def chunk(delta: dict[str, Any], ending: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": ending, "logprobs": None}
        return event({**head, "choices": [choice], **({"usage": None} if wish.with_usage else {})})

    async def chunks(one: Running) -> AsyncGenerator[bytes, None]:
        text, decoder, count = served.trained.text, DecodeStream(skip_special_tokens=True), 0
        yield chunk({"role": "assistant", "content": ""})
        async for _, spoken in one.events():
            assert isinstance(spoken, Spoken)
            count += len(spoken.tokens)
            pieces = [decoder.step(text.tokenizer, token) for token in spoken.tokens]
            if said := "".join(piece for piece in pieces if piece):
                yield chunk({"content": said})
        yield chunk({}, speech.ending)
        if wish.with_usage:
            yield event({**head, "choices": [], "usage": _usage(speech, count)})
        yield b"data: [DONE]\n\n"

    return chunks


def _spoken(served: Served, speech: Speech) -> Running:
    """Raises Refused (429)."""

    def add(tell: Callable[[int], Tell]) -> list[Speaking]:
        job = Speaking(tell(0), speech=speech)
        served.engine.speak(job)
        return [job]

    return Running(add)


async def _seen(served: Served, url: str, side: int) -> NDArray[np.float32]:
    return await to_thread.run_sync(pixels_of, url, served.settings.shown_pixels, side, limiter=served.decoders)


def _users(messages: Sequence[Message]) -> list[Message]:
    return [one for one in messages if one.role == "user"]


def _turns(messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
    """Earlier question-answer pairs, and the question. The model knows no system turn: what such messages say stands
    before the first question.
    """
    spoken = [one for one in messages if one.role in ("user", "assistant")]
    roles = [one.role for one in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise Refused(
            400, "messages: users and assistant must take turns, the user first and last.", param="messages",
            code="invalid_value",
        )  # fmt: skip
    if any(one.pictures for one in messages if one.role != "user"):
        raise Refused(400, "messages: only the user shows pictures.", param="messages", code="invalid_value")
    texts = [one.text for one in spoken]
    told = [one.text for one in messages if one.role in ("system", "developer") and one.text]
    texts[0] = "\n".join([*told, texts[0]])
    return list(zip(texts[0:-1:2], texts[1::2])), texts[-1]


def _room(served: Served, asked: ChatAsked, prompt: int) -> int:
    """Tokens that the answer may have."""
    whole = min(served.settings.context_tokens, served.trained.model.config.llm.max_position_embeddings)
    wanted = asked.max_completion_tokens or asked.max_tokens
    if prompt + (wanted or 1) > whole:
        raise Refused(
            400,
            f"messages: a prompt of {prompt} tokens and an answer of {wanted or 1} exceed the {whole} read here.",
            param="messages",
            code="context_length_exceeded",
        )
    if wanted and wanted > served.settings.answer_tokens:
        raise Refused(
            400, f"max_tokens: answers have at most {served.settings.answer_tokens} tokens here.", param="max_tokens",
            code="invalid_value",
        )  # fmt: skip
    return wanted or min(served.settings.answer_tokens, whole - prompt)


def _head(served: Served, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": served.settings.name,
        "system_fingerprint": served.trained.fingerprint[:16],
    }


def _usage(speech: Speech, count: int) -> dict[str, int]:
    read = len(speech.prompt)
    return {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count}
