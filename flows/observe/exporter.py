"""A recipe's metrics for Prometheus: at a port that it scrapes, or as a file for node-exporter's textfile collector.

They are read from what the steps leave behind (receipts, lines of metrics, times), not kept in the processes that do
the work: those are short, killed, or a Ray worker on any node, and Prometheus would miss what they counted last.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from flows.observe.data_metrics import DataMetrics
from flows.observe.run_metrics import RunMetrics
from flows.recipe import Recipe
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError


def registry_of(recipe: Recipe) -> CollectorRegistry:
    """Everything that `recipe`'s datasets and run tell, gathered anew at each scrape."""
    registry = CollectorRegistry()
    datasets = [Dataset(recipe.dataset(name)) for name in (*recipe.sources, *recipe.sets)]
    registry.register(DataMetrics(recipe.name, datasets))
    registry.register(RunMetrics(recipe.name, recipe.run_folder))
    return registry


def text_of(recipe: Recipe) -> bytes:
    """The metrics as Prometheus reads them."""
    return generate_latest(registry_of(recipe))


def write_textfile(recipe: Recipe, path: Path) -> None:
    """The metrics as a file, which appears whole."""
    attempt = path.with_name(f".{path.name}.writing")
    attempt.write_bytes(text_of(recipe))
    attempt.replace(path)


@contextmanager
def served(recipe: Recipe, port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """Serve /metrics on `port`, 0 for a free one, and yield it; ends with the block.

    Raises:
        HarmonError: the port is taken.
    """
    try:
        server, thread = start_http_server(port, addr=address, registry=registry_of(recipe))
    except OSError as error:
        raise HarmonError(
            f"Metrics cannot be served on {address}:{port} ({error.strerror}); name another port."
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
