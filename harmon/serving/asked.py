"""The bodies of requests, as OpenAI's clients send them.

Fields that would change the answer and that this model cannot serve are refused unless they ask for nothing; those that
say nothing about the answer (`user`, `metadata`, ...) are taken and ignored; any other name is an error.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harmon.serving.refusal import Refused

A = TypeVar("A", bound="Asked")
Idle = Any
"""Taken and ignored."""


class Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = "harmon"
    user: Idle = None
    metadata: Idle = None
    store: Idle = None
    service_tier: Idle = None
    safety_identifier: Idle = None
    prompt_cache_key: Idle = None


class Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]
    text: str


class Address(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    detail: Idle = None


class Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["image_url"]
    image_url: Address


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # clients send answers back with all that we gave

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[Words | Shown, Field(discriminator="type")]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if isinstance(part, Words))

    @property
    def pictures(self) -> list[str]:
        if self.content is None or isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content if isinstance(part, Shown)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    include_usage: bool = False


class TextFormat(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]


class ChatAsked(Asked):
    """POST /v1/chat/completions. Left out, `temperature` is 0: the likeliest token, as the release answers."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None


class PicturesAsked(Asked):
    """POST /v1/images/generations; the fields from `seed` on are ours. Left out, they are the checkpoint's own."""

    prompt: str
    n: int | None = Field(default=None, ge=1)
    size: str | None = Field(default=None, max_length=32)
    """WIDTHxHEIGHT in pixels; auto: a square as the last stage trained."""
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0)
    quality: Idle = None
    style: Idle = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Idle = None
    output_compression: Idle = None

    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Of the first picture; each next one's is 1 more."""
    negative_prompt: str | None = None
    guidance: float | None = Field(default=None, ge=1, le=100)
    steps: int | None = Field(default=None, ge=1)
    """AR steps."""
    diffusion_steps: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, gt=0, le=10)


def read_asked(kind: type[A], body: bytes) -> A:
    """The body of a request. Raises Refused (400), naming the first wrong field and what is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        # an unknown field explains a required one that is missing, so it is told first
        first = min(
            error.errors(include_input=False, include_url=False), key=lambda one: one["type"] != "extra_forbidden"
        )
        place = ".".join(str(part) for part in first["loc"])
        said = "there is no such field here" if first["type"] == "extra_forbidden" else first["msg"]
        where = f"{place[:200]}: " if place else ""
        raise Refused(400, f"{where}{said}.", param=place[:200] or None, code="invalid_value") from None


def two_sides(size: str) -> tuple[int, int]:
    """(width, height) of WIDTHxHEIGHT. Raises Refused."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", size)
    if not found:
        raise Refused(400, f"size: {size[:32]!r} is no size; write it as 512x512.", param="size", code="invalid_value")
    return int(found[1]), int(found[2])
