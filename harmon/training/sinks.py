"""Where lines of metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, each by option.

A sink is a function of one line. It runs in the process that started the training, so workers wait for none of them.
Each fails alone, with a warning: the others and the training go on.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.errors import ConfigurationError
from pipelines.settings import Settings

log = logging.getLogger(__name__)
Sink = Callable[[Mapping[str, Any]], None]
MLFLOW_RUN = "mlflow.json"  # in the stage's folder: which run of which server is the stage's


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
    """One function that hands a line to every sink of `settings`, closed with the block; None where there is none.

    `folder` is the stage's, whose name is that of the run; `experiment` gathers runs. Raises ConfigurationError where a
    package is absent.
    """
    opened = []
    if settings.tensorboard:
        opened.append(_Guarded("TensorBoard", _tensorboard(_package("tensorboardX", "tensorboard"), folder)))
    if settings.wandb:
        wandb = _package("wandb", "wandb")
        opened.append(_Guarded("Weights & Biases", _wandb(wandb, settings.wandb, folder, experiment)))
    if settings.mlflow:
        mlflow = _package("mlflow", "mlflow")
        opened.append(_Guarded("MLflow", _mlflow(mlflow, settings.mlflow, folder, experiment)))
    if opened:
        folder.mkdir(parents=True, exist_ok=True)
    for sink in opened:
        sink.open()

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
            sink.close(ending)


class _Guarded:
    """A sink whose errors are warnings, told at the first of several in a row."""

    def __init__(self, name: str, sink: AbstractContextManager[Sink]) -> None:
        self.name, self._sink = name, sink
        self._put: Sink | None = None
        self._failing = False

    def open(self) -> None:
        self._put = self._tried(self._sink.__enter__)

    def put(self, line: Mapping[str, Any]) -> None:
        if self._put is not None:
            self._tried(lambda: self._put and self._put(line))

    def close(self, error: BaseException | None) -> None:
        if self._put is not None:
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
        attempt = record.with_name(f"{MLFLOW_RUN}.writing")
        attempt.write_text(json.dumps({"uri": uri, "run_id": run.info.run_id}) + "\n")
        attempt.replace(record)
        yield lambda line: mlflow.log_metrics(scalars(line), step=line["step"])


def _package(name: str, option: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigurationError(f"training.watch.{option} needs the package {name}: pip install {name}.") from None
