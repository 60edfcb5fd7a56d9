"""A Ray cluster of one node with its job API, started as `ray start --head` starts it; ends with the test."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.children import spawn, stop
from pipelines.loopback import free_port

START_SECONDS = 180.0


@dataclass(frozen=True)
class RayHead:
    """Where it takes jobs, and the process that all of its others descend from."""

    address: str
    pid: int


@contextmanager
def ray_head(cpus: int) -> Iterator[RayHead]:
    """A head on free ports, in whose jobs `python` is ours and imports what we import."""
    port, dashboard, agent, client = (free_port() for _ in range(4))
    bin_folder = Path(sys.executable).parent
    with TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:  # sockets: short paths
        options = {
            "port": port, "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1", "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent, "ray-client-server-port": client, "min-worker-port": 0,
            "max-worker-port": 0, "num-cpus": cpus, "object-store-memory": 100 << 20, "temp-dir": folder,
        }  # fmt: skip
        command = [str(bin_folder / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
        environment = os.environ | {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_AUTH_MODE": "disabled",
        }
        with (Path(folder) / "start.log").open("wb") as log:
            child = spawn(
                [*command, *(f"--{name}={value}" for name, value in options.items())], env=environment, output=log
            )
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait(child, f"{address}/api/version", Path(folder) / "start.log")
            yield RayHead(address, child.pid)
        finally:
            stop(child)


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)
