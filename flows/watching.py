"""What follows a training while it runs: sinks of its metrics, and looks at its checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmon.training.looks import Looks, look_once
from harmon.training.samples import SampleSettings, look_command
from harmon.training.scene_scores import METRIC, WatchedScenes, line_of
from harmon.training.sinks import SinkSettings, open_sinks, scalars
from pipelines.errors import HarmonError

OnLine = Callable[[Mapping[str, Any]], None]


class WatchSettings(SinkSettings):
    """Sinks, and samples."""

    samples: SampleSettings | None = None
    """None: no pictures, answers and scores while training."""

    @property
    def scenes(self) -> WatchedScenes | None:
        """The suite that looks score."""
        return self.samples.scenes if self.samples else None


@contextmanager
def watched(
    settings: WatchSettings,
    run: Path,
    folder: Path,
    experiment: str,
    device: str = "cpu",
    store: str | None = None,
) -> Iterator[OnLine | None]:
    """A function for each line of metrics of the stage in `folder`, a part of `run`, which trains on `device` and may
    keep its checkpoints in `store`; None where nothing is asked.

    Looks are a process of their own. Where the block ends well, one at its last checkpoint is waited for; where it
    fails, as when a flow run is cancelled, they are broken off.
    """
    with open_sinks(settings, folder, experiment) as sink:
        samples = settings.samples
        if samples is None:
            yield sink
            return
        with _looks(Looks(look_command(samples, run, folder, device, store), folder.name)) as looks:
            looked = 0

            def on_line(line: Mapping[str, Any]) -> None:
                nonlocal looked
                if sink is not None:
                    sink(line)
                if line["step"] // samples.every > looked:
                    looked = line["step"] // samples.every
                    looks.ask()

            yield on_line
            looks.ask()  # the last checkpoint is written behind the last line


def last_scores(
    settings: WatchSettings, run: Path, folder: Path, step: int, device: str = "cpu", store: str | None = None
) -> dict[str, float]:
    """Scores on scenes of the last checkpoint, of `step`, of the finished stage in `folder`, by the names that gates
    ask for. Where no look has scored it, as when the suite is a new one, that is done now.

    Raises:
        HarmonError: it cannot be done.
    """
    samples, suite = settings.samples, settings.scenes
    if samples is None or suite is None:
        raise HarmonError("Nothing is scored on scenes: training.watch.samples.scenes is not set.")
    line = line_of(folder, step, suite)
    if line is None:
        why = look_once(look_command(samples, run, folder, device, store))
        line = line_of(folder, step, suite)
        if line is None:
            raise HarmonError(f"Train step {step} of {folder} could not be scored on scenes: {why or 'it is gone'}.")
    return scalars(line["scenes"], METRIC)


@contextmanager
def _looks(looks: Looks) -> Iterator[Looks]:
    try:
        yield looks
    except BaseException:
        looks.end(at_once=True)
        raise
    looks.end()
