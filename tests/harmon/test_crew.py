"""Batches for several workers: in this process or in actors of Ray, of which one dies."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from harmon.evaluation.crew import Crew, at_work
from harmon.training.launch import local_ray
from pipelines.errors import HarmonError

BATCHES = [[number, number + 1] for number in range(0, 12, 2)]


@dataclass(frozen=True)
class DoublerOf:
    """Makes a Doubler whose process is known by a file in `folder`."""

    folder: Path

    def __call__(self) -> "Doubler":
        return Doubler(self.folder)


class Doubler:
    """Doubles numbers; dies at 6 where its folder says so, for the first time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise HarmonError(f"There is no folder {folder}.")
        (folder / f"pid-{os.getpid()}").touch()

    def work(self, items: Sequence[int]) -> list[int]:
        time.sleep(0.05)
        if 6 in items and (self._folder / "die").exists():
            (self._folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if -1 in items:
            raise HarmonError("There is no half of -1.")
        return [2 * item for item in items]


def done(crew: Crew, folder: Path, batches: list[list[int]] = BATCHES) -> dict[int, int]:
    with at_work(crew, DoublerOf(folder)) as work:
        return {item: result for items, results in work(batches) for item, result in zip(items, results, strict=True)}


def test_one_worker_works_in_this_process_and_is_made_when_there_is_work(tmp_path: Path) -> None:
    assert done(Crew(), tmp_path, []) == {}
    assert not list(tmp_path.iterdir())
    assert done(Crew(), tmp_path) == {number: 2 * number for number in range(12)}
    assert [path.name for path in tmp_path.iterdir()] == [f"pid-{os.getpid()}"]


@pytest.mark.slow
def test_a_batch_that_an_actor_died_with_is_done_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where actors find this module
    (tmp_path / "die").touch()
    with local_ray(2):  # one for all; without, each crew starts its own
        assert done(Crew(workers=2), tmp_path) == {number: 2 * number for number in range(12)}
        assert len(list(tmp_path.glob("pid-*"))) == 3
        with pytest.raises(HarmonError, match="There is no half of -1"):
            done(Crew(workers=2), tmp_path, [[1], [-1]])
        with pytest.raises(HarmonError, match="There is no folder"):
            done(Crew(workers=2), tmp_path / "nowhere")
