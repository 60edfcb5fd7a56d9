"""What follows a training while it runs: sinks of its metrics, and pictures and answers of its checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmon.training.looks import Looks
from harmon.training.samples import SampleSettings, look_command
from harmon.training.sinks import SinkSettings, open_sinks

OnLine = Callable[[Mapping[str, Any]], None]


class WatchSettings(SinkSettings):
    """Sinks, and samples."""

    samples: SampleSettings | None = None
    """None: no pictures and answers while training."""


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

    Samples are made by a process of their own. Where the block ends well, those of its last line are waited for; where
    it fails, as when a flow run is cancelled, they are broken off.
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


@contextmanager
def _looks(looks: Looks) -> Iterator[Looks]:
    try:
        yield looks
    except BaseException:
        looks.end(at_once=True)
        raise
    looks.end()
