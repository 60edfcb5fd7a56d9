"""Whether the Prefect flow run around this code is cancelled. Prefect itself only says so: it ends nothing."""

import logging
from collections.abc import Callable
from uuid import UUID

from pipelines.errors import HarmonError

PROGRESS_EVENT = "harmon.progress"  # of a deployment's flow run that moves on
log = logging.getLogger(__name__)


class Cancelled(HarmonError):
    """Work was stopped because its flow run was cancelled."""


def cancellation() -> Callable[[], bool]:
    """A function that asks Prefect's server whether the flow run around the caller is cancelled; outside of one it
    never is.

    A server that does not answer has cancelled nothing; a flow run that was deleted is.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.runtime import flow_run

    identity = flow_run.get_id()
    if identity is None:
        return lambda: False

    def cancelled() -> bool:
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(identity)).state
        except ObjectNotFound:
            return True
        except httpx.HTTPError as error:
            log.warning("Prefect's server does not say whether the flow run is cancelled: %s", error)
            return False
        return state is not None and (state.is_cancelling() or state.is_cancelled())

    return cancelled


def errors_in_one_sentence() -> None:
    """Have Prefect tell of an expected error by its sentence; a traceback is for the unexpected."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], HarmonError):
        record.exc_info = None
    return True
