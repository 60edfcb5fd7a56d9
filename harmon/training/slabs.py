"""Memory that decoding processes write pictures into and the trainer reads out of.

Through a pipe each picture would be copied five times. A slab is a file in memory without a name, so no kill leaves it
behind, and it counts as this job's memory, not as /dev/shm, of which containers have little. A process opens it below
/proc; where that is not to be had, pictures come with the process's answer.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harmon.training.squares import Pixels, Rejected, Wanted, decode

Filled = list[Pixels | Rejected | None]
"""What a process answers: None stands for a picture that it put into the slab."""


@dataclass(frozen=True)
class Slab:
    """Room for some pictures."""

    descriptor: int
    memory: mmap.mmap

    @property
    def where(self) -> str:
        """How another process opens it."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def taken_out(self, wanted: Sequence[Wanted], filled: Filled) -> list[Pixels | Rejected]:
        """A copy of the pictures, and what else was `filled` in."""
        copy = _shaped(self.memory, wanted).copy()
        places = zip(wanted, copy, filled, strict=True)
        return [whole[: one.px, : one.px] if there is None else there for one, whole, there in places]


class Slabs:
    """Slabs of one trainer, used again and again."""

    def __init__(self) -> None:
        self._free: dict[int, list[Slab]] = {}
        self._descriptors: list[int] = []

    def take(self, wanted: Sequence[Wanted]) -> Slab | None:
        """One with room for `wanted`; None where the system has no such files."""
        room = _room(wanted)
        if free := self._free.get(room):
            return free.pop()
        if not hasattr(os, "memfd_create"):
            return None
        descriptor = os.memfd_create("pictures")
        self._descriptors.append(descriptor)
        os.ftruncate(descriptor, room)
        return Slab(descriptor, mmap.mmap(descriptor, room))

    def give_back(self, slab: Slab) -> None:
        """It may serve others now."""
        self._free.setdefault(len(slab.memory), []).append(slab)

    def close(self) -> None:
        """Let go of all; their memory is free when nobody reads it."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._free.clear()


def decode_into(where: str | None, wanted: Sequence[Wanted]) -> Filled:
    """In a process: decode `wanted` into the slab at `where`. Raises as `decode` does."""
    found: Filled = [*decode(wanted)]
    memory = None if where is None else _opened(where, _room(wanted))
    if memory is None:
        return found
    shared = _shaped(memory, wanted)
    for place, one in enumerate(found):
        if isinstance(one, np.ndarray):
            px = len(one)
            shared[place, :px, :px] = one
            found[place] = None
    return found


def _room(wanted: Sequence[Wanted]) -> int:
    """Bytes of `wanted`, each as large as the largest."""
    return 3 * len(wanted) * max(one.px for one in wanted) ** 2


def _shaped(memory: mmap.mmap, wanted: Sequence[Wanted]) -> NDArray[np.uint8]:
    """[pictures, px, px, 3], px the largest."""
    px = max(one.px for one in wanted)
    return np.frombuffer(memory, dtype=np.uint8).reshape(len(wanted), px, px, 3)


@lru_cache(maxsize=1024)  # a slab's descriptor stays its own while these processes run
def _opened(where: str, room: int) -> mmap.mmap | None:
    try:
        with open(where, "r+b") as file:  # noqa: PTH123  # no path of a disk
            return mmap.mmap(file.fileno(), room)
    except OSError:
        return None
