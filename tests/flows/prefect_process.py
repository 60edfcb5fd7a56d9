"""A real Prefect server, as `prefect server start` starts it, and a process worker of its pool; each ends with its
block."""

import os
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.children import spawn, stop
from pipelines.loopback import free_port

PATIENCE = 240.0
QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}


@contextmanager
def prefect_server_process(folder: Path, **settings: str) -> Iterator[str]:
    """The address of its API; its database is SQLite below `folder`, where `settings` name no other."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        **QUIET,
        "PREFECT_HOME": str(folder / "server"),
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        **settings,
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        child = spawn(command, env=environment, output=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/health", timeout=5)
                break
            except OSError:
                said = (folder / "server.log").read_text()[-4000:]
                assert child.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.2)
        yield f"{address}/api"
    finally:
        stop(child)


@contextmanager
def worker_process(folder: Path, api: str, pool: str = "harmon", **settings: str) -> Iterator[int]:
    """The process of a worker that looks for flow runs twice a second; its flow runs import what we import."""
    environment: Mapping[str, str] = {
        **os.environ,
        **QUIET,
        "PREFECT_HOME": str(folder / "worker"),
        "PREFECT_API_URL": api,
        "PREFECT_WORKER_QUERY_SECONDS": "0.5",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **settings,
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.log").open("ab") as log:
        child = spawn(command, env=environment, output=log)
    try:
        yield child.pid
    finally:
        stop(child, patience=30.0)
