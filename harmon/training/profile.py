"""A profiler over a few train steps, off unless the execution asks for it."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Profile:
    """torch.profiler over the train steps `first` to `last`, counted from 1; None: over none.

    The trace is written into `folder` when its last step, or the stage's, is done: Chrome's format, gzipped, a file a
    worker, which https://ui.perfetto.dev opens. Profiled steps are slower, and writing waits for the device.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, rank: int) -> None:
        self.steps, self.folder, self.rank = steps, folder, rank
        self._running: tuple[int, profile] | None = None

    def before(self, step: int) -> None:
        """Train step `step` is about to begin."""
        if self.steps is None or self._running is not None or not self.steps[0] <= step <= self.steps[1]:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        started = profile(activities=activities)
        started.start()
        self._running = step, started

    def after(self, step: int, ends: bool) -> None:
        """Train step `step` is done, and is the stage's last where it `ends`."""
        if self.steps is None or self._running is None or not (step == self.steps[1] or ends):
            return
        (first, running), self._running = self._running, None
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        running.export_chrome_trace(str(self.folder / f"steps-{first}-{step}-worker-{self.rank}.json.gz"))
