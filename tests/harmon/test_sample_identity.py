"""The global sequence of samples: equal for any number of workers and after any resume, none lost, none doubled."""

from collections import Counter
from collections.abc import Iterator

import pytest
from miniature import make_job, small_stage

from harmon.training.mixture import blocks_of_step, cursors
from harmon.training.rows import Place, StageRows
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
