"""Running a recipe: find what is not done, and do it as one Prefect flow with one task for each step and dataset."""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.flow_run import Cancelled
from flows.observe.logs import set_up_prefect_logs
from flows.observe.traces import Tracer, tracing
from flows.recipe import Recipe
from flows.server import prefect_server
from flows.work import work_of
from flows.work_item import Work
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.log_facts import log_facts
from pipelines.settings import nearest
from pipelines.steps import Progress

APPROVAL_SECONDS = 14 * 24 * 3600  # how long a gate waits for a person
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    recipe: str
    did: tuple[str, ...]
    """Steps that were done now; the others had been done before."""
    steps: int
    report: str | None

    def to_json(self) -> dict[str, Any]:
        """As `harmon run --json` prints it."""
        return asdict(self)

    def sentence(self) -> str:
        """As `harmon run` prints it."""
        did = (
            f"{len(self.did)} of {self.steps} steps were to do" if self.did else "nothing was to do: every step is done"
        )
        return f"{self.recipe}: {did}." + (f" The report is {self.report}" if self.report else "")


def run_recipe(recipe: Recipe, first: str | None = None, last: str | None = None, redo: str | None = None) -> Outcome:
    """Do every step of `recipe` between `first` and `last` that is not done; Prefect starts only if there is one.

    The results of step `redo` are taken away first: it is done again, and what was made from it after it.

    Raises:
        ConfigurationError: a step's name that the recipe does not have, `first` while a step before it is not done, or
            a step to redo whose result stands in a dataset.
    """
    chosen = _chosen(work_of(recipe), first, last)
    if redo:
        _undo(chosen, redo)
    undone = next((number for number, work in enumerate(chosen) if not work.is_done()), None)
    did: tuple[str, ...] = ()
    if undone is not None:
        with log_facts(run=recipe.name), tracing() as tracer, tracer.span(f"run {recipe.name}", recipe=recipe.name):
            did = tuple(_as_flow(recipe, chosen[undone:], tracer))
    report = recipe.run_folder / "report.html"
    return Outcome(recipe.name, did, len(chosen), _shown(report) if report.exists() else None)


def _chosen(works: list[Work], first: str | None, last: str | None) -> list[Work]:
    names = list(dict.fromkeys(work.step for work in works))
    for given in filter(None, (first, last)):
        if given not in names:
            raise ConfigurationError(f"The recipe has no step '{given}'; {nearest(given, names)}.")
    begin = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if end < begin:
        raise ConfigurationError(f"--until {last} comes before --from {first}; turn them round.")
    before = next((w for w in works if names.index(w.step) < begin and not w.is_done()), None)
    if before is not None:
        raise ConfigurationError(f"--from {first}: the step {before.name} before it is not done; leave --from out.")
    return [work for work in works if begin <= names.index(work.step) <= end]


def _undo(works: Sequence[Work], redo: str) -> None:
    """Take away what the steps called `redo` have made, or begun to make.

    The last goes first, since each is named after those before it. Steps behind the first one that is not done have
    nothing yet.
    """
    names = list(dict.fromkeys(work.step for work in works))
    if redo not in names:
        raise ConfigurationError(f"--redo: this run has no step '{redo}'; {nearest(redo, names)}.")
    if not any(work.undo for work in works if work.step == redo):
        raise ConfigurationError(
            f"--redo {redo}: its result stands in a dataset, where nothing is overwritten; "
            "change what it computes, or name a new folder with --set data=FOLDER."
        )
    made = []
    for work in works:
        if work.step == redo and work.undo:
            made.append(work.undo)
        if not work.is_done():
            break
    for undo in reversed(made):
        undo()


def _as_flow(recipe: Recipe, works: Sequence[Work], tracer: Tracer) -> list[str]:
    """Run `works` in order as one Prefect flow run; returns the names of those that were done."""
    with prefect_server(recipe.run_folder / "logs" / "prefect.log"):
        import prefect  # after the server's address is set, which Prefect reads once
        from prefect import State
        from prefect.cache_policies import NO_CACHE
        from prefect.exceptions import CancelledRun
        from prefect.logging.handlers import APILogWorker

        from flows.progress import progress_artifact

        set_up_prefect_logs()

        def do(work: Work) -> None:
            logger = prefect.get_run_logger()
            started, clock = datetime.now(UTC), time.perf_counter()
            with (
                log_facts(step=work.name),
                tracer.span(work.name, step=work.step, subject=work.subject) as span,
                progress_artifact(work.name, work.unit) as show,
            ):

                def progress(now: Progress) -> None:
                    logger.info(
                        "%s: %d of %d %s, %d rows",
                        work.name,
                        now.shards_done,
                        now.shards_total,
                        work.unit,
                        now.rows_done,
                    )
                    span.event("progress", done=now.shards_done, total=now.shards_total, rows=now.rows_done)
                    show(now)

                work.do(progress)
            _note_time(recipe.run_folder / "timings.jsonl", work, started, time.perf_counter() - clock)

        def flow() -> list[str] | State[list[str]]:
            did: list[str] = []
            session: Callable[[], AbstractContextManager[None]] | None = None
            with ExitStack() as opened:
                for work in works:
                    if work.is_done():
                        continue
                    if work.session is not session:
                        opened.close()
                        session = work.session
                        if session is not None:
                            opened.enter_context(session())
                    if work.ask is not None:
                        work.ask()
                        ui = os.environ["PREFECT_API_URL"].removesuffix("/api")
                        log.warning("%s waits for a person to resume the flow run in the Prefect UI: %s", work.name, ui)
                        prefect.pause_flow_run(timeout=APPROVAL_SECONDS)
                    try:
                        prefect.task(name=work.name, cache_policy=NO_CACHE)(do)(work)
                    except Cancelled as error:
                        return prefect.states.Cancelled(message=str(error))
                    did.append(work.name)
            return did

        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(_in_one_sentence)
        try:
            did = prefect.flow(name=f"harmon {recipe.name}", validate_parameters=False)(flow)()
            assert isinstance(did, list)  # Prefect raises where the state is Cancelled
            return did
        except CancelledRun as error:
            raise HarmonError(str(error)) from None
        finally:
            APILogWorker.drain_all(timeout=5)  # before the embedded server goes


def _in_one_sentence(record: logging.LogRecord) -> bool:
    """An expected error is told by its sentence; a traceback is for the unexpected."""
    if record.exc_info and isinstance(record.exc_info[1], HarmonError):
        record.exc_info = None
    return True


def _note_time(path: Path, work: Work, started: datetime, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "step": work.step,
        "subject": work.subject,
        "started": started.isoformat(),
        "seconds": round(seconds, 2),
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _shown(path: Path) -> str:
    """`path` as a person in this folder would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
