"""The step that keeps the rows worth training on and writes them as globally shuffled shards of a new dataset.

Three passes. `plan` decides about every row from columns alone. Then the columns of all rows go once through an
external shuffle on disk (filtering.shuffle). Then shards are written, each independent of the others, their pictures
read from where they lie, by random access. So the shards' bytes depend on inputs and selection alone, not on the number
of workers, and a killed run is repeated from the shuffle, or from the shards that it has finished.

Memory: what `plan` needs, then about 100 MiB and one shard's columns for each worker. Disk: every row's carried
columns once, compressed, in the work folder of the new dataset.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from filtering.inputs import check_inputs, read_groups
from filtering.layout import Layout, lay_out
from filtering.selection import Selection
from filtering.shard_files import Shards
from pipelines.children import PR_SET_PDEATHSIG
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.workspace import WORK, Workspace

STEP_VERSION = 3


def select_step(datasets: Sequence[Dataset], selection: Selection) -> Step:
    """The step that writes the selected rows of `datasets`."""
    selection = selection.named(datasets)
    reads = tuple(Reads(dataset, read_groups(dataset, selection)) for dataset in datasets)
    return Step("select", STEP_VERSION, selection.configuration(), reads)


def select(
    datasets: Sequence[Dataset],
    target: Dataset,
    selection: Selection,
    on_progress: ProgressCallback | None = None,
    workers: int = 1,
) -> Commit:
    """Write the rows of `datasets` that pass to `target`, in an order that the seed and their keys alone decide.

    `filtering.plan.plan` says in which order the rules judge. Every row that leaves stands in the rejects with its
    reason and what was measured. A carried group that a dataset lacks is null in its rows. `workers` processes write
    the shards; it does not change a byte.

    Raises:
        ConfigurationError: a rule's group is absent from a dataset with images, a carried one from all; no row comes
            from a source that is named.
        HarmonError: no row passes.
    """
    selection = selection.named(datasets)
    run = StepRun(target, select_step(datasets, selection), on_progress)
    if run.committed:
        run.clean()
        return run.committed
    check_inputs(datasets, selection)
    work = Workspace(target.store.work(f"{WORK}/{run.step.key}/shuffle"))
    work.acquire()
    layout = lay_out(datasets, target, selection, work.folder)
    pending = run.pending(range(layout.shards))
    if workers > 1 and len(pending) > 1:
        _write_apart(datasets, target, selection, layout, pending, workers, run, on_progress)
    else:
        shards = Shards(datasets, selection, layout)
        for shard in pending:
            shards.write(run.shard(shard), shard)
    work.discard()
    return run.commit(notes=layout.notes)


# Several processes

_writer: tuple[StepRun, Shards] | None = None  # of a worker process


def _write_apart(
    datasets: Sequence[Dataset],
    target: Dataset,
    selection: Selection,
    layout: Layout,
    pending: Sequence[int],
    workers: int,
    run: StepRun,
    on_progress: ProgressCallback | None,
) -> None:
    """Write the pending shards with several processes, neighbours by the same one: they share a partition."""
    commits = [dataset.head.number if dataset.head else None for dataset in datasets]
    inputs = [(dataset.root, commit) for dataset, commit in zip(datasets, commits, strict=True)]
    told = (inputs, target.root, selection, layout, os.getpid())
    context = multiprocessing.get_context("spawn")
    size = max(1, min(16, len(pending) // (4 * workers)))
    runs = [pending[start : start + size] for start in range(0, len(pending), size)]
    pool = ProcessPoolExecutor(min(workers, len(runs)), context, _begin_worker, told)
    try:
        for done in as_completed([pool.submit(_write_some, some) for some in runs]):
            done.result()
            if on_progress is not None:
                on_progress(run.progress())
    except BrokenProcessPool as problem:
        raise HarmonError(
            f"A process that wrote shards of {target.root} was killed, perhaps for want of memory; run it again with "
            "fewer workers, and it goes on where it was."
        ) from problem
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure nothing more is begun


def _begin_worker(
    inputs: Sequence[tuple[Any, int | None]], target: Any, selection: Selection, layout: Layout, parent: int
) -> None:
    global _writer
    if sys.platform == "linux":  # a worker ends with the process that started it, also when that one is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    datasets = [Dataset(root, until=commit) for root, commit in inputs]
    run = StepRun(Dataset(target), select_step(datasets, selection))
    _writer = run, Shards(datasets, selection, layout)


def _write_some(shards: Sequence[int]) -> None:
    assert _writer is not None
    run, writer = _writer
    for shard in shards:
        writer.write(run.shard(shard), shard)
