"""Batches of work for several copies of a model: in this process, or in actors of Ray.

Whoever calls writes down what comes back, batch by batch; a batch that an actor died with is done again by the one that
takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipelines.errors import HarmonError

Item = TypeVar("Item")
Result = TypeVar("Result")
In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
AHEAD = 2  # batches that an actor has at a time, so that it never waits for the next one
RESTARTS = 3  # of an actor that dies, and tries of the batch that it had


class Worker(Protocol[In, Out]):
    """One copy of a model at work."""

    def work(self, items: Sequence[In]) -> Sequence[Out]:
        """A result for each item, in order."""
        ...


@dataclass(frozen=True)
class Crew:
    """How many workers, and what each takes. It decides no value."""

    workers: int = 1
    """1: this process works, unless RAY_ADDRESS names a cluster. More: as many actors of Ray."""
    batch: int = 8
    threads: int = 1
    """CPUs of an actor."""
    gpus: float = 0.0
    """Of an actor."""

    @property
    def uses_ray(self) -> bool:
        """Whether actors do the work."""
        return self.workers > 1 or "RAY_ADDRESS" in os.environ


ALONE = Crew()

Work = Callable[[Iterable[Sequence[Item]]], Iterator[tuple[Sequence[Item], Sequence[Result]]]]
"""Batches of items in; each batch with its results out, as soon as it is done, in any order."""


@contextmanager
def at_work(crew: Crew, make: Callable[[], Worker[Item, Result]]) -> Iterator[Work[Item, Result]]:
    """Workers, each made by `make` in its own process when there is first something to do, and let go at the end.

    Raises:
        HarmonError: what a worker raised, or an actor died again and again.
    """
    if crew.uses_ray:
        from harmon.training.launch import local_ray

        with local_ray(crew.workers * crew.threads):
            actors = _Actors(crew, make)
            try:
                yield actors.results
            finally:
                actors.dismiss()
        return
    made: list[Worker[Item, Result]] = []

    def here(batches: Iterable[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
        for items in batches:
            if not made:
                made.append(make())
            yield items, made[0].work(items)

    yield here


class _Actors(Generic[Item, Result]):
    """Actors that take batches as they become ready: one that never starts holds nothing up."""

    def __init__(self, crew: Crew, make: Callable[[], Worker[Item, Result]]) -> None:
        self._crew, self._make = crew, make
        self._starting: dict[Any, Any] = {}
        """The reference that tells of an actor being ready, to the actor."""
        self._ready: list[Any] = []

    def results(self, batches: Iterable[Sequence[Item]]) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
        import ray

        waiting = iter(batches)
        under_way: dict[Any, tuple[Any, Sequence[Item]]] = {}
        first = next(waiting, None)
        if first is None:
            return
        self._engage()
        todo: Sequence[Item] | None = first
        while todo is not None or under_way:
            while todo is not None and (free := self._free(under_way)) is not None:
                under_way[free.work.remote(todo)] = free, todo
                todo = next(waiting, None)
            (done, *_), _ = ray.wait([*under_way, *self._starting])
            if done in self._starting:
                self._heard(done)
                self._ready.append(self._starting.pop(done))
                continue
            _, items = under_way.pop(done)
            yield items, self._heard(done)

    def dismiss(self) -> None:
        """End the actors."""
        import ray

        for actor in (*self._ready, *self._starting.values()):
            ray.kill(actor)

    def _engage(self) -> None:
        if self._starting or self._ready:
            return
        import ray

        made = ray.remote(
            num_cpus=self._crew.threads,
            num_gpus=self._crew.gpus or None,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )(_Actor)
        actors = [made.remote(self._make, self._crew.threads) for _ in range(self._crew.workers)]
        self._starting = {actor.ready.remote(): actor for actor in actors}

    def _free(self, under_way: dict[Any, tuple[Any, Sequence[Item]]]) -> Any | None:
        busy = [actor for actor, _ in under_way.values()]
        least = min(self._ready, key=busy.count, default=None)
        return least if least is not None and busy.count(least) < AHEAD else None

    def _heard(self, done: Any) -> Any:
        import ray

        try:
            return ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HarmonError):  # as the worker said it
                raise error.cause from None
            raise HarmonError(
                f"A worker failed ({_last(error)}); mend that and run it again: what is done is kept."
            ) from error
        except ray.exceptions.RayError as error:
            raise HarmonError(
                f"A worker died {RESTARTS + 1} times ({_last(error)}); give it fewer items at a time (--batch) or more "
                "memory, and run it again: what is done is kept."
            ) from error


class _Actor:
    """A worker in a process of its own; a method makes it, since what a constructor raises loses its type."""

    def __init__(self, make: Callable[[], Worker[Any, Any]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._make = make
        self._worker: Worker[Any, Any] | None = None

    def ready(self) -> bool:
        """Once the worker is made."""
        self._worker = self._worker or self._make()
        return True

    def work(self, items: Sequence[Any]) -> Sequence[Any]:
        self.ready()  # again where this process took the place of one that died
        assert self._worker is not None
        return self._worker.work(items)


def _last(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200]
