"""What a log line is about: the run, the step and the shard at work.

Run and step are the process's, which does one step at a time; a shard is the thread's that works on it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_process: dict[str, str] = {}
_thread = threading.local()


@contextmanager
def log_facts(**facts: str) -> Iterator[None]:
    """While the block runs, the process's lines are about these."""
    before = dict(_process)
    _process.update(facts)
    try:
        yield
    finally:
        _process.clear()
        _process.update(before)


def set_shard(shard: int | None) -> None:
    """This thread's lines are about this shard from now on; None: about none."""
    _thread.shard = shard


def facts_now() -> dict[str, str | int]:
    """What a line of this thread is about."""
    shard: int | None = getattr(_thread, "shard", None)
    return {**_process, **({} if shard is None else {"shard": shard})}
