"""The step that has a model write captions, from captions or from images, as a new column group."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

from pipelines.dataset import Dataset
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, StepRun
from recaption.engines import Engine
from recaption.known import KnownCaptions, consulted
from recaption.ledger import Ledger
from recaption.open_shards import OpenShards
from recaption.recaption import Recaption
from recaption.work import asking


def write_captions(
    dataset: Dataset,
    recaption: Recaption,
    open_engine: Callable[[], AbstractContextManager[Engine]],
    on_progress: ProgressCallback | None = None,
    reuse: Sequence[Dataset] = (),
) -> Commit:
    """Write the column group `recaption.group` (and its telemetry) to `dataset` and commit it.

    Every row is there: with its caption, or failed with the reason: `not_dense` (the prompt is for dense
    captions), `no_image`, `no_caption`, `not_selected`, a check that the answer failed, or the engine's
    refusal. Identical work is answered from the caption groups of `dataset` and `reuse`, unless the rows say
    `all`; the commit's context lists them. The engine is opened only where something is left to ask. After a
    kill, nothing is asked again but what was in flight (in process: the batch), also where another commit has
    moved the step key meanwhile.

    Raises:
        HarmonError: the engine cannot go on; a rerun continues where it stopped.
        ConfigurationError: the rows' condition is none over this dataset.
    """
    run = StepRun(dataset, recaption.step(dataset), on_progress)
    folder = Ledger.folder(dataset)
    if run.committed and not folder.is_dir():
        return run.committed
    with Ledger(folder, asking(recaption.prompt, recaption.model), recaption.rows.ledger_round) as ledger:
        if not run.committed and (pending := run.pending(dataset.shard_numbers)):
            _ask(run, recaption, ledger, open_engine, reuse, pending)
        sources = [] if recaption.rows.only == "all" else consulted((dataset, *reuse))
        commit = run.commit(notes={"captions_consulted": sources})
        for entry in dataset.entries(recaption.group):
            works = dataset.table(recaption.group, entry.shard, ["work"]).column("work").to_pylist()
            ledger.committed(work for work in works if work)
    return commit


def _ask(
    run: StepRun,
    recaption: Recaption,
    ledger: Ledger,
    open_engine: Callable[[], AbstractContextManager[Engine]],
    reuse: Sequence[Dataset],
    pending: Sequence[int],
) -> None:
    """Finish the shards `pending`."""
    known = None if recaption.rows.only == "all" else KnownCaptions((run.dataset, *reuse))
    with ExitStack() as stack:
        shards = stack.enter_context(OpenShards(run, recaption, ledger, known, pending))
        if shards.any_question():
            engine = stack.enter_context(open_engine())
            size = engine.batch_pictures if recaption.prompt.image else engine.batch_rows
            for answered in engine.answers(shards.lots(size, engine.version)):
                shards.take(answered)
