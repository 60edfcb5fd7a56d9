"""What follows a training while it runs: sinks of its metrics, and pictures and answers of its checkpoints."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harmon.training.samples import SampleSettings, write_samples
from harmon.training.sinks import SinkSettings, open_sinks

log = logging.getLogger(__name__)
OnLine = Callable[[Mapping[str, Any]], None]


class WatchSettings(SinkSettings):
    """Sinks, and samples."""

    samples: SampleSettings | None = None
    """None: no pictures and answers while training."""


@contextmanager
def watched(
    settings: WatchSettings, run: Path, folder: Path, experiment: str, device: str = "cpu"
) -> Iterator[OnLine | None]:
    """A function for each line of metrics of the stage in `folder`, a part of `run`, which trains on `device`; None
    where nothing is asked.
    """
    with open_sinks(settings, folder, experiment) as sink:
        samples = settings.samples
        if sink is None and samples is None:
            yield None
            return
        looked = 0

        def on_line(line: Mapping[str, Any]) -> None:
            nonlocal looked
            if sink is not None:
                sink(line)
            if samples is not None and line["step"] // samples.every > looked:
                looked = line["step"] // samples.every
                _sample(samples, run, folder, device)

        yield on_line


def _sample(samples: SampleSettings, run: Path, folder: Path, device: str) -> None:
    """Training goes on whatever keeps a checkpoint from being looked at, such as a full disk or GPU."""
    try:
        write_samples(samples, run, folder, device)
    except Exception as error:  # a training on many GPUs must not end for want of a picture
        log.warning("no samples of %s: %s", folder.name, error)
