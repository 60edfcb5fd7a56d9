"""Engines: whatever answers messages with a language model, in process or over HTTP; and which one to use."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from pipelines.settings import Settings
from recaption.language_model import LanguageModel
from recaption.prompt import Sampling


@dataclass(frozen=True)
class Answer:
    """What came back for one message.

    Either `text` with how it ended, or the `refusal` that made it impossible for this message alone: one
    word, such as `prompt_too_long`, that becomes the row's reason.
    """

    text: str | None
    refusal: str | None
    finish_reason: str | None  # "stop": the model ended its turn; "length": cut off at max_tokens
    tokens_in: int | None
    tokens_out: int | None
    seconds: float
    attempts: int
    endpoint: str


class Engine(Protocol):
    """A language model ready to answer."""

    @property
    def batch_rows(self) -> int:
        """How many messages it likes to be given at once."""
        ...

    def answer(self, messages: Sequence[str], sampling: Sampling) -> list[Answer]:
        """One answer per message (each the only user turn of a chat), in order.

        Raises:
            HarmonError: the engine cannot go on (dead server, wrong model name); nothing is lost by a rerun.
        """
        ...


class EngineSettings(Settings):
    """How captions are asked for. It does not change what is computed, so no step key includes it."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """In this process, or through vLLM's OpenAI-compatible server."""

    endpoints: tuple[str, ...] = ()
    """Base addresses of vLLM servers that run already; with none, one is started and stopped again."""

    served_model: str | None = None
    """The name that those servers know the model by; the model's own short name where not given."""

    concurrency: int = Field(default=32, ge=1)
    """Requests in flight (vLLM)."""

    threads: int | None = Field(default=None, ge=1)
    """Threads that torch may use (transformers); None leaves them as they are."""


@contextmanager
def open_engine(settings: EngineSettings, model: LanguageModel, log: Path) -> Iterator[Engine]:
    """The engine that the settings name, ready, for as long as the context is open.

    `log` takes the output of a server started here.
    """
    if settings.engine == "transformers":
        from recaption.transformers_engine import TransformersEngine  # loads torch

        yield TransformersEngine(model, threads=settings.threads)
        return
    from recaption.server import VllmServer
    from recaption.vllm_engine import VllmEngine

    with ExitStack() as stack:
        if settings.endpoints:
            endpoints, name = settings.endpoints, settings.served_model or model.name
        else:
            server = stack.enter_context(VllmServer(model, log))
            endpoints, name = (server.address,), server.model
        yield stack.enter_context(VllmEngine(endpoints, name, settings.concurrency))
