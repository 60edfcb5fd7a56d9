"""What a flow run does with a recipe's steps: one Prefect task each, in order, with artifacts a person looks at."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.runtime import deployment
from prefect.settings import PREFECT_API_URL

from flows.artifacts import show_made
from flows.flow_run import errors_in_one_sentence
from flows.observe.logs import set_up_prefect_logs
from flows.observe.traces import Span, Tracer, tracing
from flows.progress import progress_artifact
from flows.recipe import Recipe
from flows.work_item import Work
from pipelines.log_facts import log_facts
from pipelines.steps import Progress

APPROVAL_SECONDS = 14 * 24 * 3600  # how long a gate waits for a person
log = logging.getLogger(__name__)


def do_all(recipe: Recipe, works: Sequence[Work]) -> list[str]:
    """Do those of `works` that are not done, within the flow run around this call; returns their names.

    Raises:
        Cancelled: the flow run was cancelled, and a step has stopped for it.
    """
    errors_in_one_sentence()
    set_up_prefect_logs()
    did: list[str] = []
    session: Callable[[], AbstractContextManager[None]] | None = None
    with _followed(recipe) as tracer, ExitStack() as opened:
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
                _wait_for_a_person(work)
            _as_task(recipe, work, tracer)
            did.append(work.name)
    return did


@contextmanager
def _followed(recipe: Recipe) -> Iterator[Tracer]:
    """Log lines name the run, and its trace has a span as long as the block."""
    with log_facts(run=recipe.name), tracing() as tracer, tracer.span(f"run {recipe.name}", recipe=recipe.name):
        yield tracer


def _as_task(recipe: Recipe, work: Work, tracer: Tracer) -> None:
    def do() -> None:  # without parameters, which Prefect would search for its own things
        with log_facts(step=work.name), tracer.span(work.name, step=work.step, subject=work.subject) as span:
            _do(recipe, work, span)

    prefect.task(name=work.name, cache_policy=NO_CACHE)(do)()


def _do(recipe: Recipe, work: Work, span: Span) -> None:
    started, clock = datetime.now(UTC), time.perf_counter()
    with progress_artifact(work.name, work.unit, prefect.get_run_logger()) as show:

        def progress(now: Progress) -> None:
            span.event("progress", done=now.shards_done, total=now.shards_total, rows=now.rows_done)
            show(now.shards_done, now.shards_total, f", {now.rows_done:,} rows")

        work.do(progress)
    _note_time(recipe.run_folder / "timings.jsonl", work, started, time.perf_counter() - clock)
    if work.shows is not None:
        show_made(work.shows)


def _wait_for_a_person(work: Work) -> None:
    """Return once a person has resumed the flow run. That of a deployment is suspended: its process ends, and the
    worker starts it anew, which finds the steps before done and the same pause passed. Any other waits here.
    """
    ui = str(PREFECT_API_URL.value()).removesuffix("/api")
    log.warning("%s waits for a person to resume the flow run in the Prefect UI: %s", work.name, ui)
    if deployment.get_id() is None:
        pause_flow_run(timeout=APPROVAL_SECONDS)
    else:
        suspend_flow_run(timeout=APPROVAL_SECONDS, key=work.name)


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
