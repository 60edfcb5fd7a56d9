"""A vLLM server of our own: started on a free loopback port, waited for, and gone when we are."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from pipelines.errors import ConfigurationError, HarmonError
from pipelines.loopback import free_port
from recaption import leash
from recaption.language_model import LanguageModel, local_folder

_CHECKOUT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = {  # what the caller's environment says of these goes first
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # do not pin the worker to one core that others may be busy on
    "TOKENIZERS_PARALLELISM": "false",
}


def vllm_python() -> Path:
    """The interpreter of vLLM's own environment: $HARMON_VLLM_PYTHON, else .venv-vllm in the checkout."""
    return Path(os.environ.get("HARMON_VLLM_PYTHON") or _CHECKOUT / ".venv-vllm/bin/python")


def vllm_environment() -> dict[str, str]:
    """Environment variables of a vLLM process."""
    return _ENVIRONMENT | os.environ


class VllmServer:
    """Serves one model for as long as the context is open; `address` is its base URL, `model` the name it
    answers to.

    The server and all its processes end with the context, and also when this process is killed.
    """

    def __init__(self, model: LanguageModel, log: Path, gpus: int = 0, ready_seconds: float = 600.0) -> None:
        """`log`: file that takes what the server prints. Nothing starts before the context is entered.

        `gpus`: in bfloat16, split over so many; 0: on the CPU in float32, because bf16 is several times slower on
        processors without AVX-512.
        """
        self.model = model.name
        self.address = ""
        self._folder = local_folder(model)
        self._log = log
        self._gpus = gpus
        self._ready_seconds = ready_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start and wait until it answers.

        Raises:
            ConfigurationError: vLLM's environment is absent.
            HarmonError: the server ended, or was not ready in time; the last lines of its log stand in the
            message.
        """
        python = vllm_python()
        if not python.exists():
            raise ConfigurationError(
                f"vLLM's environment is absent ({python}); run `make vllm` or set HARMON_VLLM_PYTHON."
            )
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-I",
            str(leash.__file__),
            str(os.getpid()),
            str(python),
            *self._arguments(port),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=vllm_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def _arguments(self, port: int) -> list[str]:
        return [
            *("-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self._folder), "--served-model-name", self.model),
            *("--host", "127.0.0.1", "--port", str(port)),
            *self._hardware(),
            *("--generation-config", "vllm"),  # not the model folder's penalties
        ]

    def _hardware(self) -> list[str]:
        if not self._gpus:
            return ["--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.2"]
        shared = ["--tensor-parallel-size", str(self._gpus), "--gpu-memory-utilization", "0.92"]
        return ["--dtype", "bfloat16", "--enable-prefix-caching", *shared]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HarmonError(f"The vLLM server ended before it was ready; {self._log} ends with: {self._tail()}")
            try:
                if httpx.get(f"{self.address}/health", timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.25)
        raise HarmonError(
            f"The vLLM server was not ready after {self._ready_seconds:.0f} s; {self._log} ends with: {self._tail()}"
        )

    def _tail(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # the leash ends the server's process group and then itself
            self._process.wait()
            self._process = None
