"""vLLM without a server: its batch engine in Ray actors, each with a process of vLLM's own environment.

Ray and vLLM need not share an environment, so an actor holds its place (and its GPUs) in the cluster and speaks with
vLLM over a pipe. vLLM batches continuously inside a lot, so a lot is large; a kill loses the lots under way. Every
node needs this package, vLLM's environment and the model's folder at the same paths.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipelines.errors import ConfigurationError, HarmonError
from recaption import offline_worker
from recaption.endpoint import chat, sampled
from recaption.engines import ENDS, PICTURE_THREADS, UNREADABLE, Answer, Answered, Question, with_images
from recaption.language_model import LanguageModel, context_length, local_folder
from recaption.server import vllm_environment, vllm_python

LOT = 1024
PICTURES = 128  # of one lot: some 70 MB of base64
_AHEAD = 2  # lots at each actor: one is answered, one waits, so that it never idles


class OfflineEngine:
    """Ray actors that answer lots; Ray is started here if nobody has."""

    batch_rows = LOT
    batch_pictures = PICTURES

    def __init__(self, model: LanguageModel, actors: int, gpus: int, log: Path) -> None:
        """`gpus`: of each actor, over which the tensors are split; 0: on the CPU in float32. `log`: vLLM's output."""
        self.version = "unknown"
        self._actors = actors
        self._gpus = gpus
        self._log = log.absolute()
        self._started_ray = False
        self._workers: list[Any] = []
        self._configuration = {
            "model": str(local_folder(model)),
            "max_model_len": context_length(model),
            "generation_config": "vllm",  # not the model folder's penalties
            **({"tensor_parallel_size": gpus} if gpus else {"dtype": "float32", "enforce_eager": True}),
            **({} if gpus else {"gpu_memory_utilization": 0.2}),
        }

    def __enter__(self) -> Self:
        """Raises ConfigurationError: vLLM's environment is absent; HarmonError: it did not start."""
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # 2.60 asks for tokens; a Ray started here is loopback only
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not vllm_python().exists():
            raise ConfigurationError(
                f"vLLM's environment is absent ({vllm_python()}); run `make vllm` or set HARMON_VLLM_PYTHON."
            )
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            cluster = os.environ.get("RAY_ADDRESS")
            local = {"num_cpus": self._actors, "include_dashboard": False, "object_store_memory": 128 << 20}
            ray.init(cluster or "local", log_to_driver=False, logging_level="warning", **({} if cluster else local))
            self._started_ray = True
        actor = ray.remote(num_gpus=self._gpus, num_cpus=1)(_Worker)
        python, configuration = str(vllm_python()), json.dumps(self._configuration)
        try:
            self._workers = [actor.remote(python, configuration, str(self._log)) for _ in range(self._actors)]
            self.version = ray.get([worker.version.remote() for worker in self._workers])[0]
        except ray.exceptions.RayError as error:
            self.__exit__(None, None, None)
            raise HarmonError(f"vLLM's batch engine did not start ({_said(error)}); read {self._log}.") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        for worker in self._workers:
            ray.kill(worker)
        if self._started_ray:
            ray.shutdown()

    def answers(self, lots: Iterator[Sequence[Question]]) -> Iterator[Answered]:
        """As `Engine.answers` says; each lot's answers come together."""
        import ray

        under_way: dict[Any, tuple[Any, Sequence[Question]]] = {}
        more = True
        while True:
            while more and len(under_way) < _AHEAD * len(self._workers):
                if (lot := next(lots, None)) is None:
                    more = False
                elif lot:
                    with ThreadPoolExecutor(PICTURE_THREADS) as threads:
                        asked, blind = with_images(lot, threads)
                    if blind:
                        yield [(question, UNREADABLE) for question in blind]
                    if asked:
                        busy = [worker for worker, _ in under_way.values()]
                        worker = min(self._workers, key=busy.count)
                        said = [_spoken(question, image) for question, image in asked]
                        under_way[worker.answer.remote(said)] = worker, [question for question, _ in asked]
                else:
                    break
            if not under_way:
                return
            (done, *_), _ = ray.wait(list(under_way))
            _, lot = under_way.pop(done)
            try:
                given = ray.get(done)
            except ray.exceptions.RayError as error:
                raise HarmonError(
                    f"vLLM's batch engine ended ({_said(error)}); read {self._log}, then rerun: finished lots are kept."
                ) from None
            yield [(question, _answer(said)) for question, said in zip(lot, given, strict=True)]


class _Worker:
    """The actor: one process of vLLM, spoken with over its stdin and stdout. It ends with the actor."""

    def __init__(self, python: str, configuration: str, log: str) -> None:
        with Path(log).open("ab") as output:
            self._process = subprocess.Popen(
                [python, offline_worker.__file__, configuration],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=vllm_environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
                text=True,
            )
        self._version = self._hear()["version"]

    def version(self) -> str:
        return str(self._version)

    def answer(self, lot: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self._process.stdin
        began = time.perf_counter()
        self._process.stdin.write(json.dumps(lot) + "\n")
        self._process.stdin.flush()
        answers: list[dict[str, Any]] = self._hear()
        seconds = (time.perf_counter() - began) / len(lot)
        return [answer | {"seconds": seconds} for answer in answers]

    def _hear(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended with status {self._process.wait()}")
        return json.loads(line)


def _spoken(question: Question, image: bytes | None) -> dict[str, Any]:
    return {"messages": chat(question.message, image), "sampling": sampled(question.sampling)}


def _answer(said: dict[str, Any]) -> Answer:
    finish = said.get("finish_reason")
    if finish is not None and finish not in ENDS:
        return Answer(None, "unfinished", None, None, None, said["seconds"], 1, "ray", f"ended its text by '{finish}'")
    return Answer(
        said.get("text"),
        said.get("refusal"),
        finish,
        said.get("tokens_in"),
        said.get("tokens_out"),
        said["seconds"],
        1,
        "ray",
    )


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]
