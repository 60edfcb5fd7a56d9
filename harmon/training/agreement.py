"""What all workers do alike: what rank 0 decides for them, and what any of them hears of its machine.

Both speak over gloo on the CPU, so that nothing here waits for a GPU.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import torch
import torch.distributed as dist

from harmon.training.job import Notice
from pipelines.errors import HarmonError

ASK_SECONDS = 1.0
T = TypeVar("T")


def cpu_group() -> dist.ProcessGroup | None:
    """A gloo group of all workers; None in a process alone. Each use has its own, since threads must not share one."""
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)  # torch gives a worker outside a group a mark instead; all are inside
    return group


def rank_0_decides(decide: Callable[[], T], group: dist.ProcessGroup | None) -> T:
    """What `decide` returns at rank 0, at every worker; a HarmonError that it raises there is raised by all."""
    if group is None:
        return decide()
    said: list[Any] = [None, None]  # what was decided, or why it was not
    if dist.get_rank() == 0:
        try:
            said = [decide(), None]
        except HarmonError as error:
            said = [None, error]
    dist.broadcast_object_list(said, src=0, group=group)
    if said[1] is not None:
        raise said[1]
    decided: T = said[0]
    return decided


class Notices:
    """What workers are told of their machines, heard by all in the same train step.

    A process alone asks in every step. Among several, rank 0's clock says every `seconds` that it is time to ask: a
    number that travels while the step is computed. Then all ask, and take the gravest answer.
    """

    def __init__(self, told: Callable[[], Notice] | None, seconds: float = ASK_SECONDS) -> None:
        self._told, self._seconds = told, seconds
        self._group = cpu_group() if told else None
        self._due = torch.zeros((), dtype=torch.int32)
        self._travels: dist.Work | None = None
        self._asked = time.monotonic()
        self._last: Notice = "go on"

    def begin(self) -> None:
        """At the beginning of a step: rank 0 sends whether all are to ask at its end."""
        if self._group is not None:
            self._due.fill_(time.monotonic() - self._asked >= self._seconds)
            self._travels = dist.broadcast(self._due, src=0, group=self._group, async_op=True)

    def heard(self) -> Notice:
        """At the end of a step: the newest notice, equal on all workers."""
        if self._told is None:
            return "go on"
        if self._travels is not None:
            self._travels.wait()
            if not self._due:
                return self._last
        self._asked = time.monotonic()
        self._last = self._gravest(self._told())
        return self._last

    def _gravest(self, notice: Notice) -> Notice:
        notices: tuple[Notice, ...] = get_args(Notice)
        place = torch.tensor(notices.index(notice))
        if self._group is not None:
            dist.all_reduce(place, dist.ReduceOp.MAX, group=self._group)
        return notices[int(place)]
