"""The log of a Ray job as it is written, for the flow run that follows the job."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import aiohttp

LINE = 2000  # characters of one line that are shown
AGAIN_SECONDS = 2.0  # after which a cluster that broke the stream off is asked again
END_SECONDS = 5.0  # for which the last lines are waited for
Tell = Callable[[str], None]
log = logging.getLogger(__name__)


def run_log() -> Tell:
    """Where lines go: to the log of the Prefect run around the caller, which its UI shows; outside of one, to ours."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger().info
    except MissingContextError:
        return log.info


@contextmanager
def streamed(chunks: Callable[[], AsyncIterator[str]], tell: Tell) -> Iterator[None]:
    """Tell each line of a job's log once, from a thread of its own, while the block runs and until the job's last one.

    `chunks` begins the log anew, and ends when the job does; a stream that breaks is begun again.
    """
    over = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_stream(chunks, tell, over)), name="job log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_SECONDS)


async def _stream(chunks: Callable[[], AsyncIterator[str]], tell: Tell, over: threading.Event) -> None:
    told = 0
    while True:
        seen, rest = 0, ""
        try:
            async for chunk in chunks():
                *lines, rest = (rest + chunk).split("\n")
                for line in lines:
                    seen += 1
                    if seen > told:
                        tell(line[:LINE])
                        told = seen
            if rest:
                tell(rest[:LINE])
            return
        except (OSError, RuntimeError, aiohttp.ClientError) as error:  # what Ray's client raises
            if over.is_set():
                return
            log.warning("the log of the Ray job broke off: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)
