"""Engines: whatever answers questions with a language model, in process or over HTTP; and which one to use."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from pipelines.settings import Settings
from recaption.language_model import LanguageModel
from recaption.prompt import Sampling


@dataclass(frozen=True, slots=True)
class Question:
    """One request to the model."""

    work: str
    """Names what is asked: equal work, equal message, image, model and sampling (see `recaption.work`)."""
    draw: int
    """0 at first; 1, 2, ... where a check had it asked again with another seed."""
    message: str
    """The only user turn of the chat."""
    sampling: Sampling
    image: Callable[[], bytes | None] | None = None
    """Makes the image that is shown before the message, encoded at the size that the model needs; it gives None
    where there is none to be had, and the answer is then the refusal `unreadable_image`.

    Engines call it when the question is sent and let go of the bytes with the exchange: pictures in memory are
    those in flight, however many questions wait. Any thread may call it.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question.

    Either `text` with how it ended, or the `refusal` that made it impossible for this question alone: one
    word, such as `prompt_too_long`, that becomes the row's reason, with the server's own words as `detail`.
    """

    text: str | None
    refusal: str | None
    finish_reason: str | None  # "stop": the model ended its turn; "length": cut off at max_tokens; no other
    tokens_in: int | None
    tokens_out: int | None
    seconds: float
    attempts: int
    endpoint: str
    detail: str | None = None


UNREADABLE = Answer(None, "unreadable_image", None, None, None, 0.0, 0, "none")
"""The answer to a question whose image cannot be had: nobody is asked."""

PICTURE_THREADS = 4
"""That make the images of questions ready to be sent."""

ENDS = frozenset({"stop", "length"})
"""How a text may end; any other finish reason is a fault of the exchange."""

Answered = Sequence[tuple[Question, Answer]]


class Engine(Protocol):
    """A language model ready to answer."""

    @property
    def version(self) -> str:
        """Software that answers, as telemetry records it: "vllm 0.32.0"."""
        ...

    @property
    def batch_rows(self) -> int:
        """Questions of one lot: they are answered together, or (1) each for itself."""
        ...

    @property
    def batch_pictures(self) -> int:
        """The same of questions that show an image: all images of a lot are in memory at a time."""
        ...

    def answers(self, lots: Iterator[Sequence[Question]]) -> Iterator[Answered]:
        """Answers as they come, every question's once, in any order.

        `lots` is asked for more whenever there is room, from this thread. An empty lot says: nothing now, ask
        again after the next answer. What has been yielded is no longer in flight when the next is asked for.

        Raises:
            HarmonError: the engine cannot go on (dead server, wrong model name); nothing is lost by a rerun.
        """
        ...


def with_images(
    lot: Sequence[Question], threads: ThreadPoolExecutor
) -> tuple[list[tuple[Question, bytes | None]], list[Question]]:
    """The questions of a lot that can be asked, each with its image made; and those whose image cannot be had."""
    images = threads.map(lambda question: question.image() if question.image else None, lot)
    asked: list[tuple[Question, bytes | None]] = []
    blind: list[Question] = []
    for question, image in zip(lot, images, strict=True):
        if question.image and image is None:
            blind.append(question)
        else:
            asked.append((question, image))
    return asked, blind


class EngineSettings(Settings):
    """How captions are asked for. It does not change what is computed, so no step key includes it."""

    engine: Literal["transformers", "vllm", "vllm-offline"] = "transformers"
    """In this process; through vLLM's OpenAI-compatible servers; or vLLM's own batch engine in Ray actors."""

    endpoints: tuple[str, ...] = ()
    """Base addresses of vLLM servers that run already; with none, one is started and stopped again."""

    served_model: str | None = None
    """The name that those servers know the model by; the model's own short name where not given."""

    concurrency: int = Field(default=640, ge=1)
    """Most requests in flight at one endpoint; how many are sent follows what the server makes of them."""

    deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for one reply; a slow server is waited for that long."""

    patience_seconds: float = Field(default=60.0, gt=0)
    """How long endpoints that have all stopped answering are waited for."""

    actors: int = Field(default=1, ge=1)
    """Ray actors of vllm-offline, each with a model of its own."""

    gpus: int = Field(default=0, ge=0)
    """GPUs of one model that is started here, over which vLLM splits its tensors; 0: the CPU."""

    threads: int | None = Field(default=None, ge=1)
    """Threads that torch may use (transformers); None leaves them as they are."""

    def gpus_used(self, told: float | None) -> float:
        """GPUs that are paid for while it answers; `told`: what the user says of them.

        A model that is started here uses what the settings give it, and none on the CPU. Of servers that run
        already nothing is known: one GPU where the user says nothing.
        """
        if told is not None:
            return told
        if self.endpoints:
            return 1.0
        return float(self.gpus * (self.actors if self.engine == "vllm-offline" else 1))


@contextmanager
def open_engine(settings: EngineSettings, model: LanguageModel, log: Path) -> Iterator[Engine]:
    """The engine that the settings name, ready, for as long as the context is open.

    `log` takes the output of a server started here.
    """
    if settings.engine == "transformers":
        from recaption.transformers_engine import TransformersEngine  # loads torch

        yield TransformersEngine(model, threads=settings.threads, device="cuda" if settings.gpus else "cpu")
        return
    with ExitStack() as stack:
        if settings.engine == "vllm-offline":
            from recaption.offline_engine import OfflineEngine

            yield stack.enter_context(OfflineEngine(model, settings.actors, settings.gpus, log))
            return
        from recaption.server import VllmServer
        from recaption.vllm_engine import VllmEngine

        endpoints, name = settings.endpoints, settings.served_model or model.name
        patience = settings.patience_seconds
        if not endpoints:
            server = stack.enter_context(VllmServer(model, log, gpus=settings.gpus))
            endpoints, name = (server.address,), server.model
            patience = min(patience, 5.0)  # a server of our own that ends does not come back
        yield stack.enter_context(
            VllmEngine(endpoints, name, settings.concurrency, settings.deadline_seconds, patience)
        )
