"""A model's server as `harmon serve` runs it, on a port of this machine, in a thread of the test."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from harmon.serving.app import application
from harmon.serving.server import bound, server
from harmon.serving.settings import ServingSettings
from harmon.trained import Trained


@contextmanager
def served(trained: Trained, key: str | None = None, **settings: object) -> Iterator[str]:
    """Its address, as http://127.0.0.1:PORT."""
    app = application(trained, ServingSettings(**settings), key=key, loopback=key is None)
    with bound("127.0.0.1", 0) as listening:
        one = server(app)
        thread = threading.Thread(target=one.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            wait_until(lambda: one.started)
            yield address
        finally:
            one.should_exit = True
            thread.join()


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def metrics(address: str, **headers: str) -> dict[str, float]:
    """Name with labels, as Prometheus writes them, to value."""
    lines = httpx.get(f"{address}/metrics", headers=headers, timeout=120).raise_for_status().text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
