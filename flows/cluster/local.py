"""A Ray cluster of several nodes on this machine: real raylets, started and ended by Ray's real autoscaler.

The autoscaler's nodes are processes here (Ray's own provider for one machine, which Ray's tests use), so scaling by
request, by waiting work and by idleness goes the way it goes on AWS and on Kubernetes. Linux only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.cluster.provider import CHECKOUT, NodeType, called
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.loopback import free_port
from pipelines.settings import Settings, parse

WORKER = "worker"
START_SECONDS = 180.0
END_SECONDS = 3.0
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
_AUTOSCALER = {
    "AUTOSCALER_METRIC_PORT": "0",  # 44217 may be another cluster's
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": "f" * 51 + "00000",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_NODE_TYPE_NAME": "ray.head.default",
    "RAY_enable_autoscaler_v2": "1",
}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's word for: keep to the loopback interface
_COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
_HEAD_TYPE, _HEAD_ID = "ray.head.default", "f" * 51 + "00000"  # as that provider names them


class Standing(Settings):
    """Where a local cluster answers, on the loopback interface, and how far it may grow."""

    gcs: int
    api: int
    most: int


@dataclass(frozen=True)
class Local:
    """The cluster `name` of this user. The head has no CPUs, so that work runs on nodes that can leave."""

    name: str = "harmon"
    cpus: int = 1
    """CPUs of each node."""
    most: int = 8
    """Nodes beside the head."""
    idle_minutes: float = 5.0
    """After which a node that nobody uses or has asked for leaves."""
    memory: int = 100 << 20
    """Bytes of each node's object store."""

    @property
    def folder(self) -> Path:
        """Short, since sockets lie in it."""
        return Path("/tmp") / f"harmon-ray-{os.getuid()}" / self.name

    def types(self) -> dict[str, NodeType]:
        """One kind of node. Of a cluster that stands, as it was started."""
        most = self.standing.most if self._file.exists() else self.most
        return {_HEAD_TYPE: NodeType(0, None), WORKER: NodeType(most, None)}

    def up(self) -> None:
        """Start the head with its autoscaler. Raises ConfigurationError where it stands already."""
        if self._processes():
            raise ConfigurationError(
                f"The local cluster {self.name} is up already; scale it with `harmon cluster scale`, or take it down "
                "first with `harmon cluster down`."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        ports = Standing(gcs=free_port(), api=free_port(), most=self.most)
        (self.folder / "autoscaler.json").write_text(json.dumps(self._configuration(ports), indent=1))
        with (self.folder / "start.log").open("wb") as log:
            head = subprocess.Popen(
                self._command(ports),
                env=_environment() | _AUTOSCALER,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(head, ports)
        except BaseException:
            self.down()
            raise
        self._file.write_text(ports.model_dump_json())

    def down(self) -> None:
        """End its processes, politely at first, and remove its folder."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._processes():
                try:
                    os.kill(pid, sign)
                except ProcessLookupError:
                    continue
            deadline = time.monotonic() + END_SECONDS
            while self._processes() and time.monotonic() < deadline:
                time.sleep(0.2)
        if left := self._processes():
            raise HarmonError(f"The processes {left} of the local cluster {self.name} do not end; end them by hand.")
        shutil.rmtree(self.folder, ignore_errors=True)

    def on_head(self, words: Sequence[str]) -> str:
        """Run it here."""
        command = [sys.executable, "-m", "flows.cluster.head", *words]
        return called(command, _environment() | {"RAY_ADDRESS": f"127.0.0.1:{self.standing.gcs}"})

    def reach(self) -> tuple[str, ...]:
        """Its job API, and what other programs have to know; it asks for no token."""
        known = _LOOPBACK | {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": f"127.0.0.1:{self.standing.gcs}"}
        return (
            f"training as a job:    --set training.launch.submit=http://127.0.0.1:{self.standing.api}",
            f"Ray's other work:     export {' '.join(f'{name}={value}' for name, value in known.items())}",
            f"dashboard:            http://127.0.0.1:{self.standing.api}",
        )

    @property
    def standing(self) -> Standing:
        """Raises ConfigurationError where it is not up."""
        try:
            return parse(Standing, json.loads(self._file.read_text()), str(self._file))
        except FileNotFoundError:
            raise ConfigurationError(
                f"The local cluster {self.name} is not up; start it with `harmon cluster up`."
            ) from None

    @property
    def _file(self) -> Path:
        return self.folder / "standing.json"

    def _command(self, ports: Standing) -> list[str]:
        options = {
            "port": ports.gcs, "node-ip-address": "127.0.0.1", "dashboard-host": "127.0.0.1",
            "dashboard-port": ports.api, "dashboard-agent-listen-port": 0, "ray-client-server-port": free_port(),
            "min-worker-port": 0, "max-worker-port": 0, "num-cpus": 0, "num-gpus": 0,
            "object-store-memory": self.memory, "temp-dir": self.folder,
            "autoscaling-config": self.folder / "autoscaler.json",
        }  # fmt: skip
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        return [*ray, *(f"--{name}={value}" for name, value in options.items())]

    def _configuration(self, ports: Standing) -> dict[str, object]:
        own = {"CPU": self.cpus, WORKER: 1, "object_store_memory": self.memory}
        return {
            "cluster_name": self.name,
            "max_workers": self.most,
            "upscaling_speed": self.most,
            "idle_timeout_minutes": self.idle_minutes,
            "provider": {
                "type": "external",
                "module": _PROVIDER,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": _HEAD_ID,
                "gcs_address": f"127.0.0.1:{ports.gcs}",
            },
            "available_node_types": {
                _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                WORKER: {"resources": own, "node_config": {}, "min_workers": 0, "max_workers": self.most},
            },
            "head_node_type": _HEAD_TYPE,
            "file_mounts": {},
            "cluster_synced_files": [],
            **{f"{which}_commands": [] for which in _COMMANDS},
        }

    def _wait(self, head: subprocess.Popen[bytes], ports: Standing) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports.api}/api/version", timeout=5):
                    return
            except OSError:
                if head.poll() is not None or time.monotonic() > deadline:
                    said = (self.folder / "start.log").read_text(errors="replace").strip().splitlines()
                    raise HarmonError(f"Ray's head did not start: {said[-1] if said else 'it said nothing'}") from None
                time.sleep(0.2)

    def _processes(self) -> list[int]:
        """Ray's processes of this cluster: those of Python or Ray whose arguments name its folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                except OSError:  # it has ended meanwhile, or is another user's
                    continue
                if any(f"{self.folder}/" in f"{word}/" for word in words[1:]) and any("ray" in w for w in words[:3]):
                    found.append(int(entry.name))
        return sorted(found)


def _environment() -> dict[str, str]:
    """What the head, its nodes and their jobs run with: this Python, and this code."""
    paths = [str(CHECKOUT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    other = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return (
        other
        | _LOOPBACK
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            "RAY_AUTH_MODE": "disabled",
        }
    )
