"""The step that has a model write captions, from captions or from images, as a new column group."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

from pipelines.dataset import Dataset
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, StepRun
from pipelines.workspace import WORK
from recaption.engines import Engine
from recaption.known import KnownCaptions
from recaption.ledger import Ledger
from recaption.open_shards import OpenShards
from recaption.recaption import Recaption


def write_captions(
    dataset: Dataset,
    recaption: Recaption,
    open_engine: Callable[[], AbstractContextManager[Engine]],
    on_progress: ProgressCallback | None = None,
    reuse: Sequence[Dataset] = (),
) -> Commit:
    """Write the column group `recaption.group` (and its telemetry) to `dataset` and commit it.

    Every row is there: with its caption, or failed with the reason: `not_dense` (of another task than the
    prompt is for), `no_image`, `no_caption`, `not_selected`, a check that the answer failed, or the engine's
    refusal. Identical work is answered from the caption groups of `dataset` and `reuse`, unless the rows say
    `all`. The engine is opened only where something is left to ask. After a kill, nothing is asked again but
    what was in flight (in process: the batch).

    Raises:
        HarmonError: the engine cannot go on; a rerun continues where it stopped.
        ConfigurationError: the rows' condition is none over this dataset.
    """
    run = StepRun(dataset, recaption.step(dataset), on_progress)
    if run.committed:
        return run.committed
    if pending := run.pending(dataset.shard_numbers):
        known = None if recaption.rows.only == "all" else KnownCaptions((dataset, *reuse))
        with ExitStack() as stack:
            folder = dataset.store.work(f"{WORK}/{run.step.key}")
            ledger = stack.enter_context(Ledger(folder / "answers.sqlite"))
            ledger.forget_given_up()
            shards = stack.enter_context(OpenShards(run, recaption, ledger, known, pending))
            if shards.any_question():
                engine = stack.enter_context(open_engine())
                for answered in engine.answers(shards.lots(engine.batch_rows, engine.version)):
                    shards.take(answered)
    return run.commit()
