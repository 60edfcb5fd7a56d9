"""The global sequence of samples: equal for any number of workers and after any resume, none lost, none doubled."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from miniature import make_job, small_stage
from recorded_training import blocks_read, recorded

from harmon.training.checkpoint import latest_checkpoint, read_state
from harmon.training.job import done, metrics_lines, stage_folder, training_key, write_job
from harmon.training.mixture import blocks_of_step, cursors
from harmon.training.row import Place
from harmon.training.rows import StageRows
from harmon.training.stage import TASKS, Task

STEPS = 300


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("run"), small_stage(steps=STEPS))


def opened(job) -> StageRows:
    """As a worker that has just started opens them: nothing is kept from before."""
    return StageRows(job.stage, job.mixture, job.latents)


def samples(job, world: int, first: int, last: int) -> list[tuple[Task, Place]]:
    """What `world` workers read from train step `first` to `last`, each with rows of its own, block by block."""
    workers = [opened(job) for _ in range(world)]
    return [
        (block.task, worker.row(block.task, number).place)
        for step in range(first, last)
        for block in blocks_of_step(job.stage, step)
        for rank, worker in enumerate(workers)
        for number in block.share(rank, world)
    ]


@pytest.fixture(scope="module")
def alone(job) -> list[tuple[Task, Place]]:
    return samples(job, 1, 0, STEPS)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_number_of_workers_reads_the_same_sequence(job, alone, world):
    assert samples(job, world, 0, STEPS) == alone


def test_a_run_resumed_on_2_then_4_then_1_workers_reads_the_same_sequence(job, alone):
    resumed = [one for world, first, last in ((2, 0, 97), (4, 97, 211), (1, 211, STEPS))
               for one in samples(job, world, first, last)]  # fmt: skip
    assert resumed == alone


def test_the_cursors_of_a_checkpoint_are_the_samples_read_before_it(job, alone):
    rows = job.stage.global_batch
    for step in (1, 97, 211, STEPS):
        read = Counter(task for task, _ in alone[: step * rows])
        assert cursors(job.stage, step) == {task: read[task] for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_of_an_entry_reads_each_of_its_rows_once(job, alone, task):
    for entry in range(len(job.mixture.of(task))):
        whole = entry_epochs(job, alone, task, entry)
        first = next(whole)
        assert len(set(first)) == len(first)
        epochs = 1
        for later in whole:
            epochs += 1
            assert sorted(later, key=str) == sorted(first, key=str)
        assert epochs > 10


def entry_epochs(job, alone, task: Task, entry: int) -> Iterator[list[Place]]:
    """The samples of one entry of `task`, an epoch at a time; a last one that is not whole is left out."""
    mixture = opened(job)._samples[task]
    places = [place for one, place in alone if one == task]
    own = [place for number, place in enumerate(places) if mixture.locate(number)[0] == entry]
    size = sum(len(rows) for rows in mixture.eligible[entry].values())
    for start in range(0, len(own) - size + 1, size):
        yield own[start : start + size]


@pytest.mark.slow
def test_a_training_killed_twice_takes_in_each_sample_once_on_2_then_4_then_1_workers(job, tmp_path):
    """kill -9 of all workers between checkpoints, what each of them has read being on disk; what was trained beyond the
    last checkpoint is gone with its weights, and comes again.
    """
    job = job.model_copy(
        update={"runs": str(tmp_path), "stage": small_stage(steps=24), "checkpoint_every": 4, "log_every": 1}
    )
    folder, path = stage_folder(job, training_key(job)), tmp_path / "job.json"
    write_job(job, tmp_path)
    taken: list[tuple[str, int, str]] = []
    for attempt, (world, until) in enumerate([(2, 6), (4, 15), (1, None)]):
        standing = latest_checkpoint(folder / "checkpoints")
        begins = read_state(standing).cursors if standing else cursors(job.stage, 0)
        if attempt:
            assert standing is not None and len(taken) >= sum(begins.values())
            taken = [one for one in taken if one[1] < begins[one[0]]]
        record = tmp_path / f"attempt-{attempt}"
        process = recorded(path, record, world)
        if until is not None:
            wait_for(process, lambda until=until: any(line["step"] >= until for line in metrics_lines(folder)))
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(300) == (0 if until is None else -signal.SIGKILL)
        read = blocks_read(record)
        assert len(list(record.glob("*.jsonl"))) == world and read
        assert {one["task"]: one["start"] for one in reversed(read)} == begins
        taken += [(one["task"], number, key) for one in read for number, key in one["places"]]
    assert done(folder, training_key(job))
    for task in TASKS:
        ours = [(number, key) for one, number, key in taken if one == task]
        numbers = range(cursors(job.stage, 24)[task])
        rows = opened(job)
        assert ours == [(number, rows.row(task, number).place.key) for number in numbers]


def wait_for(process, come) -> None:
    deadline = time.monotonic() + 300
    while not come():
        assert process.poll() is None and time.monotonic() < deadline, "training ended before the kill"
        time.sleep(0.005)
