"""Where lines of metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, each by option.

A sink is a function of one line. It runs in the process that started the training, so workers wait for none of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from pipelines.errors import ConfigurationError
from pipelines.settings import Settings

Sink = Callable[[Mapping[str, Any]], None]


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
    with ExitStack() as stack:
        sinks = []
        if settings.tensorboard:
            sinks.append(stack.enter_context(_tensorboard(folder)))
        if settings.wandb:
            sinks.append(stack.enter_context(_wandb(settings.wandb, folder, experiment)))
        if settings.mlflow:
            sinks.append(stack.enter_context(_mlflow(settings.mlflow, folder, experiment)))

        def everywhere(line: Mapping[str, Any]) -> None:
            for sink in sinks:
                sink(line)

        yield everywhere if sinks else None


def scalars(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by name, `loss/text2image` for one in a mapping; a list gives its mean, and what is no
    number is left out.
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple):
            found |= {f"{prefix}{name}": fmean(value)} if value else {}
        elif isinstance(value, int | float) and name != "step":
            found[f"{prefix}{name}"] = float(value)
    return found


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Sink]:
    writer = _package("tensorboardX", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def put(line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line["step"])

    try:
        yield put
    finally:
        writer.close()


@contextmanager
def _wandb(project: str, folder: Path, experiment: str) -> Iterator[Sink]:
    """The run's id is the folder's name, so that a resume goes on in the same run; W&B leaves out steps it has."""
    run = _package("wandb", "wandb").init(
        project=project, group=experiment, name=folder.name, id=folder.name, dir=str(folder), resume="allow"
    )
    try:
        yield lambda line: run.log(scalars(line), step=line["step"])
    finally:
        run.finish()


@contextmanager
def _mlflow(uri: str, folder: Path, experiment: str) -> Iterator[Sink]:
    mlflow = _package("mlflow", "mlflow")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=folder.name):
        yield lambda line: mlflow.log_metrics(scalars(line), step=line["step"])


def _package(name: str, option: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigurationError(f"training.watch.{option} needs the package {name}: pip install {name}.") from None
