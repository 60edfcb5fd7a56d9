"""The Prefect server a run talks to: the one PREFECT_API_URL names, else an embedded one that ends with the run.

Prefect's own ephemeral server outlives a flow killed with -9; this one is the same program started as a child that the
kernel ends with us.
"""

import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.children import spawn, stop
from pipelines.errors import HarmonError
from pipelines.loopback import free_port

START_SECONDS = 120  # measured 9-17 s on two idle cores; a busy machine takes several times that


@contextmanager
def prefect_server(log: Path) -> Iterator[str]:
    """Set PREFECT_API_URL for the block and yield it; must be entered before `prefect` is imported.

    Raises:
        HarmonError: the embedded server ended or did not answer within START_SECONDS.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_HOME", str(log.parent.parent / "prefect"))
    given = os.environ.get("PREFECT_API_URL")
    if given:
        yield given
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        environment = {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1"}
        child = spawn(command, env=environment, output=output)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _healthy(url):
                if child.poll() is not None:
                    raise HarmonError(f"The embedded Prefect server ended at once; read {log} for the reason.")
                if time.monotonic() > deadline:
                    raise HarmonError(
                        f"The embedded Prefect server did not answer within {START_SECONDS} s; read {log}, "
                        "or name a running server in PREFECT_API_URL."
                    )
                time.sleep(0.2)
            os.environ["PREFECT_API_URL"] = url
            yield url
        finally:
            os.environ.pop("PREFECT_API_URL", None)
            stop(child)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
