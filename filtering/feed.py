"""Keeps an accelerator fed: threads decode ahead of it, within bounded memory.

Decoding and resizing leave Python's lock, so threads are enough; a batch waits until the model asks for it, and at most
`ahead` batches wait.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from filtering.decode import Undecodable


@dataclass(frozen=True)
class Batch:
    """Pictures of one batch, in order."""

    keys: list[str]
    pixels: NDArray[np.uint8]
    """[B, side, side, 3]"""
    undecodable: list[str]
    """Keys whose bytes are no picture; they are in no batch."""


def batches(
    images: Iterable[tuple[str, bytes]],
    prepare: Callable[[bytes], NDArray[np.uint8]],
    size: int,
    threads: int,
    ahead: int = 3,
) -> Iterator[Batch]:
    """Batches of `size` images (fewer in the last one, and where some cannot be decoded) in the order of `images`.

    `prepare` raises Undecodable for bytes that are no picture. `images` is read by the thread that calls.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        source = iter(images)
        waiting: deque[list[tuple[str, Future[NDArray[np.uint8]]]]] = deque()

        def fill() -> None:
            while len(waiting) < ahead and (some := list(islice(source, size))):
                waiting.append([(key, pool.submit(prepare, data)) for key, data in some])

        fill()
        while waiting:
            batch = _gathered(waiting.popleft())
            fill()
            yield batch


def _gathered(jobs: list[tuple[str, "Future[NDArray[np.uint8]]"]]) -> Batch:
    keys, found, bad = [], [], []
    for key, job in jobs:
        try:
            found.append(job.result())
            keys.append(key)
        except Undecodable:
            bad.append(key)
    return Batch(keys, np.stack(found) if found else np.zeros((0, 1, 1, 3), np.uint8), bad)
