"""OpenTelemetry traces of a run, by HARMON_TRACES in the environment: a file, or `otlp` for a collector.

One span a run, one a step, with an event at each progress. The API and SDK come with Prefect and Ray; the OTLP exporter
does not, and is the user's to install. The provider is our own and not the process's: what Prefect would tell stays
out.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import ConfigurationError

VARIABLE = "HARMON_TRACES"
Attribute = str | int | float


class Span(Protocol):
    """What a step tells of itself."""

    def event(self, name: str, **facts: Attribute) -> None:
        """Something that happened."""


class Tracer:
    """Spans of this process, or none where nobody asked."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    @contextmanager
    def span(self, name: str, **facts: Attribute) -> Iterator[Span]:
        """A span as long as the block, below the one that is open; an error that leaves the block is recorded."""
        if self._tracer is None:
            yield _Silent()
            return
        with self._tracer.start_as_current_span(name, attributes=facts) as span:
            yield _Told(span)


class _Silent:
    def event(self, name: str, **facts: Attribute) -> None:
        """Nobody listens."""


class _Told:
    def __init__(self, span: Any) -> None:
        self._span = span

    def event(self, name: str, **facts: Attribute) -> None:
        """An event of the span, now."""
        self._span.add_event(name, facts)


@contextmanager
def tracing() -> Iterator[Tracer]:
    """The tracer that the environment asks for; all is written out when the block ends.

    Raises:
        ConfigurationError: a package is absent, or the file cannot be written.
    """
    where = os.environ.get(VARIABLE)
    if not where:
        yield Tracer()
        return
    sdk = _package("opentelemetry.sdk.trace")
    with ExitStack() as opened:
        resource = _package("opentelemetry.sdk.resources").Resource.create({"service.name": "harmon"})
        provider = sdk.TracerProvider(resource=resource)
        batches = _package("opentelemetry.sdk.trace.export").BatchSpanProcessor
        provider.add_span_processor(batches(_exporter(where, opened)))
        opened.callback(provider.shutdown)  # before the file closes
        yield Tracer(provider.get_tracer("harmon"))


def _exporter(where: str, opened: ExitStack) -> Any:
    if where == "otlp":  # its address and headers: OTEL_EXPORTER_OTLP_ENDPOINT and the like
        return _package("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
    try:
        Path(where).parent.mkdir(parents=True, exist_ok=True)
        file = opened.enter_context(Path(where).open("a"))  # noqa: SIM115  the stack closes it
    except OSError as error:
        raise ConfigurationError(f"{VARIABLE}={where} cannot be written ({error.strerror}); name a file.") from None
    console = _package("opentelemetry.sdk.trace.export").ConsoleSpanExporter
    return console(out=file, formatter=lambda span: span.to_json(indent=None) + "\n")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        distribution = "opentelemetry-exporter-otlp-proto-http" if ".otlp." in name else "opentelemetry-sdk"
        raise ConfigurationError(f"{VARIABLE} needs the package {distribution}: pip install {distribution}.") from None
