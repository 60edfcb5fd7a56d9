"""Where lines of metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, each by option.

A sink is a function of one line. Each runs in a thread of its own of the process that started the training, so neither
workers nor whoever follows them wait for its server. Each fails alone, with a warning: the others and the training go
on.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, Full, Queue
from statistics import fmean
from typing import Any

from pipelines.disk import write_whole
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings

log = logging.getLogger(__name__)
Sink = Callable[[Mapping[str, Any]], None]
MLFLOW_RUN = "mlflow.json"  # in the stage's folder: which run of which server is the stage's
WAITING_LINES = 1000  # that a server may lag behind; metrics.jsonl has every line
CLOSE_SECONDS = 60.0  # for which a training's end waits for a server to take the last lines
POLL_SECONDS = 0.2


class SinkSettings(Settings):
    """Which sinks a training has."""

    tensorboard: bool = False
    """Event files in the stage's folder, below tensorboard/."""
    wandb: str | None = None
    """Project of Weights & Biases; the package wandb and its login are the user's."""
    mlflow: str | None = None
    """Tracking URI of MLflow; the package mlflow is the user's."""


@contextmanager
def open_sinks(settings: SinkSettings, folder: Path, experiment: str) -> Iterator[Sink | None]:
    """One function that hands a line to every sink of `settings` and returns at once; None where there is none. What
    they have not taken when the block ends is waited for, CLOSE_SECONDS at most.

    `folder` is the stage's, whose name is that of the run; `experiment` gathers runs. Raises ConfigurationError where a
    package is absent.
    """
    wanted: dict[str, AbstractContextManager[Sink]] = {}
    if settings.tensorboard:
        wanted["TensorBoard"] = _tensorboard(_package("tensorboardX", "tensorboard"), folder)
    if settings.wandb:
        wanted["Weights & Biases"] = _wandb(_package("wandb", "wandb"), settings.wandb, folder, experiment)
    if settings.mlflow:
        wanted["MLflow"] = _mlflow(_package("mlflow", "mlflow"), settings.mlflow, folder, experiment)
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
    opened = [_Guarded(name, sink) for name, sink in wanted.items()]

    def everywhere(line: Mapping[str, Any]) -> None:
        for sink in opened:
            sink.put(line)

    ending: BaseException | None = None
    try:
        yield everywhere if opened else None
    except BaseException as error:
        ending = error
        raise
    finally:
        for sink in opened:
            sink.end(ending)
        for sink in opened:
            sink.wait()


class _Guarded:
    """A sink in a thread of its own, which opens, feeds and closes it. Its errors are warnings, told at the first of
    several in a row.
    """

    def __init__(self, name: str, sink: AbstractContextManager[Sink]) -> None:
        self.name, self._sink = name, sink
        self._failing = self._lags = False
        self._lines: Queue[Mapping[str, Any]] = Queue(WAITING_LINES)
        self._over = threading.Event()
        self._ending: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)  # it ends with the process
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        """Have it take a line, when it has taken those before."""
        if not self._thread.is_alive():  # it could not be opened
            return
        try:
            self._lines.put_nowait(line)
            self._lags = False
        except Full:
            if not self._lags:
                log.warning("%s lags %d lines behind and takes no more of them", self.name, WAITING_LINES)
            self._lags = True

    def end(self, error: BaseException | None) -> None:
        """No more lines come; `error` is what ended the training, if any."""
        self._ending = error
        self._over.set()

    def wait(self) -> None:
        """Return when it is closed, or has not been for too long."""
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.warning("%s has not taken the last metrics within %g s", self.name, CLOSE_SECONDS)

    def _run(self) -> None:
        put = self._tried(self._sink.__enter__)
        if put is None:
            return
        while not (self._over.is_set() and self._lines.empty()):
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
            except Empty:
                continue
            self._tried(partial(put, line))
        error = self._ending
        self._tried(lambda: self._sink.__exit__(type(error) if error else None, error, None))

    def _tried(self, do: Callable[[], Any]) -> Any:
        try:
            result = do()
        except Exception as error:  # of another's package and server, which training does not depend on
            if not self._failing:
                log.warning("%s takes no metrics: %s", self.name, error)
            self._failing = True
            return None
        self._failing = False
        return result


def scalars(line: Mapping[str, Any], prefix: str = "", null: float | None = None) -> dict[str, float]:
    """The numbers of a line by name, `loss/text2image` for one in a mapping; a list gives its mean, a null `null`, and
    what is no number is left out.
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/", null)
        elif isinstance(value, list | tuple):
            found |= {f"{prefix}{name}": fmean(value)} if value else {}
        elif isinstance(value, int | float) and name != "step":
            found[f"{prefix}{name}"] = float(value)
        elif value is None and null is not None:
            found[f"{prefix}{name}"] = null
    return found


@contextmanager
def _tensorboard(package: Any, folder: Path) -> Iterator[Sink]:
    writer = package.SummaryWriter(str(folder / "tensorboard"))

    def put(line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line["step"])

    try:
        yield put
    finally:
        writer.close()


@contextmanager
def _wandb(wandb: Any, project: str, folder: Path, experiment: str) -> Iterator[Sink]:
    """The run's id is the folder's name, so that a resume goes on in the same run; W&B leaves out steps it has."""
    run = wandb.init(
        project=project, group=experiment, name=folder.name, id=folder.name, dir=str(folder), resume="allow"
    )
    try:
        yield lambda line: run.log(scalars(line), step=line["step"])
    finally:
        run.finish()


@contextmanager
def _mlflow(mlflow: Any, uri: str, folder: Path, experiment: str) -> Iterator[Sink]:
    """MLflow gives a run its id, which is kept in the folder, so that a resume goes on in the same run."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    record = folder / MLFLOW_RUN
    begun = json.loads(record.read_text()) if record.exists() else {}
    known = {"run_id": begun["run_id"]} if begun.get("uri") == uri else {"run_name": folder.name}
    with mlflow.start_run(**known) as run:
        write_whole(record, (json.dumps({"uri": uri, "run_id": run.info.run_id}) + "\n").encode())
        yield lambda line: mlflow.log_metrics(scalars(line), step=line["step"])


def _package(name: str, option: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigurationError(f"training.watch.{option} needs the package {name}: pip install {name}.") from None
