"""Workers that come and go within one run, on a Ray of several nodes: batches and losses stay the same."""

import threading
import time
from pathlib import Path

import pytest
import torch
from miniature import make_job, small_stage
from ray_nodes import RayNodes, ray_nodes

from harmon.training.checkpoint import complete_checkpoints
from harmon.training.job import metrics_lines
from harmon.training.launch import Launch, train_stage
from harmon.training.loop import train

torch.set_num_threads(1)
PATIENCE = 500.0


def same(ours: Path, theirs: Path) -> None:
    for one, other in zip(metrics_lines(ours), metrics_lines(theirs), strict=True):
        assert one["step"] == other["step"] and one["samples"] == other["samples"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("course", [(2, 1, 2), (4, 2, 3, 4)], ids=str)
def test_workers_come_and_go_within_one_run(tmp_path, course):
    # A line of metrics takes half a second here, so each size has time to come before the steps run out.
    job = make_job(tmp_path, small_stage(steps=120 * len(course)), dtype="float64", checkpoint_every=10)
    sizes: list[int] = []
    with ray_nodes(course[0]) as nodes:

        def to(size: int) -> None:
            nodes.kill(len(nodes.nodes) - size)
            while len(nodes.nodes) < size:
                nodes.add()

        def on_line(line: dict) -> None:
            """Where a size of the course has made its first step, the next."""
            if not sizes or sizes[-1] != line["workers"]:
                sizes.append(line["workers"])
                if tuple(sizes) == course[: len(sizes)] != course:
                    threading.Thread(target=to, args=(course[len(sizes)],)).start()

        launch = Launch(workers=(min(course), max(course)), resize_seconds=2, max_failures=10)
        folder = train_stage(job, launch, on_line)
    assert tuple(sizes) == course
    same(folder, train(job.model_copy(update={"runs": str(tmp_path / "alone")})))


@pytest.mark.slow
def test_a_node_that_is_to_be_taken_away_is_saved_from_first(tmp_path):
    job = make_job(tmp_path, small_stage(steps=150), dtype="float64", checkpoint_every=1000, keep=9)
    with ray_nodes(2) as nodes:
        announced: list[int] = []

        def on_line(line: dict) -> None:
            if not announced:
                announced.append(line["step"])
                announce(nodes)

        folder = train_stage(job, Launch(workers=2, max_failures=2), on_line)
    early, last = (int(path.name) for path in complete_checkpoints(folder / "checkpoints"))
    assert announced[0] <= early < last == 150
    same(folder, train(job.model_copy(update={"runs": str(tmp_path / "alone")})))


def announce(nodes: RayNodes) -> None:
    nodes.announce_preemption(int((time.time() + PATIENCE) * 1000))
