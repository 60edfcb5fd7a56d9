"""Pictures decoded from image shards while training, ahead of the step, in processes of their own.

A picture that cannot be decoded is rejected with a reason; nothing takes its place. One that ends the process that
decodes it (a decoder's crash, memory that runs out) is rejected when it has done so twice. Which samples are decoded
depends on their numbers alone, never on which process is free.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

from pydantic import Field

from harmon.training.slabs import Filled, Slab, Slabs, decode_into
from harmon.training.squares import Decoded, Rejected, Resizer, Wanted, decode
from pipelines.errors import HarmonError
from pipelines.settings import Settings

CHUNK = 8  # pictures of one request to a process: many enough that asking costs little
DEADLY = "ends_its_decoder"
log = logging.getLogger(__name__)


class Decoding(Settings):
    """How pictures are decoded while training, where no latents are stored."""

    crop: Literal["random", "centre"] = "random"
    """The square of a text-to-image picture: drawn anew at each visit, as the release does, or the centre."""
    draft: bool = True
    """Decode a large JPEG at 1/2, 1/4 or 1/8 while twice the wanted side is left: faster, and not the same pixels to
    the last level."""
    resizer: Resizer = "pillow"
    """`torch` resizes several times faster, and one level of 255 off in a few of a thousand values."""
    workers: int = Field(2, ge=0)
    """Processes that decode for each trainer; 0: none, in the trainer itself."""
    ahead: int = Field(2, ge=0)
    """Blocks of each task that are decoded before the step asks for them."""


class Online(Decoding):
    """How they become latents, too."""

    autoencoder: str
    """Safetensors file of the frozen autoencoder."""
    device: str = "cpu"
    """What the autoencoder runs on."""
    rejects: str | None = None
    """File to which a line is added for each rejected picture."""

    def contents(self, autoencoder_hash: str) -> dict[str, object]:
        """What of it decides the result."""
        fast = {} if self.resizer == "pillow" else {"resizer": self.resizer}  # keys of before stay what they were
        return {"online": autoencoder_hash, "crop": self.crop, "draft": self.draft, **fast}


class Decoder:
    """Decodes pictures in `workers` processes; `ask` returns at once, and what was asked comes in any order.

    Where a process is lost, which ends them all, they are started again, and what they had not done is done with care:
    in a process apart, and if that ends too, picture by picture. Use it as a context, or call `close`: its processes
    end with it, or with this one.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = _processes(workers) if workers else None
        self._slabs = Slabs()
        self._apart: ProcessPoolExecutor | None = None

    def ask(self, wanted: Sequence[Wanted]) -> list["Asked"]:
        """`wanted` in order, CHUNK pictures each."""
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        return [self._asked(chunk) for chunk in chunks]

    def close(self) -> None:
        """End the processes; what was asked and not begun is dropped."""
        for pool in (self._pool, self._apart):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._slabs.close()

    def taken_out(self, wanted: Sequence[Wanted], slab: Slab | None, filled: Filled) -> Decoded:
        """What a process decoded of `wanted`, out of the `slab`, which serves others from here on."""
        if slab is None:
            return [one for one in filled if one is not None]
        found = slab.taken_out(wanted, filled)
        self._slabs.give_back(slab)
        return found

    def with_care(self, wanted: Sequence[Wanted]) -> Decoded:
        """`wanted` where its processes were lost. Raises HarmonError where no process can be started."""
        try:
            return self._in_a_process_apart(wanted)
        except BrokenProcessPool:
            if len(wanted) > 1:
                return [found for one in wanted for found in self.with_care([one])]
        try:
            return self._in_a_process_apart(wanted)
        except BrokenProcessPool:
            return [Rejected(DEADLY, "its decoder ended twice")]

    def _asked(self, chunk: Sequence[Wanted]) -> "Asked":
        if self._pool is None:
            done: Future[Filled] = Future()
            done.set_result([*decode(chunk)])
            return Asked(self, chunk, None, done)
        slab = self._slabs.take(chunk)
        where = None if slab is None else slab.where
        try:
            return Asked(self, chunk, slab, self._pool.submit(decode_into, where, chunk))
        except BrokenProcessPool:
            log.warning("a process that decodes pictures was lost; %d are started again", self.workers)
            self._pool.shutdown(wait=False)
            self._pool = _processes(self.workers)
            return Asked(self, chunk, slab, self._pool.submit(decode_into, where, chunk))

    def _in_a_process_apart(self, wanted: Sequence[Wanted]) -> Decoded:
        if self._apart is None:
            self._apart = _processes(1)
            try:
                self._apart.submit(decode, []).result()
            except BrokenProcessPool as error:
                raise HarmonError("Processes that decode pictures end when they start; free some memory.") from error
        try:
            return self._apart.submit(decode, wanted).result()
        except BrokenProcessPool:
            self._apart = None
            raise


@dataclass
class Asked:
    """Pictures that a `Decoder` was asked for together."""

    decoder: Decoder
    wanted: Sequence[Wanted]
    slab: Slab | None
    """Where a process puts them; None: they come with its answer."""
    future: Future[Filled]
    found: Decoded | None = None

    def result(self) -> Decoded:
        """Waits for them, in order. Raises HarmonError where a shard cannot be read, or no process be started."""
        if self.found is None:
            try:
                self.found = self.decoder.taken_out(self.wanted, self.slab, self.future.result())
            except BrokenProcessPool:  # its slab serves nobody again: who knows what still writes there
                self.found = self.decoder.with_care(self.wanted)
        return self.found


def _processes(number: int) -> ProcessPoolExecutor:
    # spawned, since a fork of a process with torch's threads may hang
    return ProcessPoolExecutor(number, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """Decode in one thread, and leave when the trainer is gone, also by kill -9: a waiting process would not notice."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there
    if "torch" in sys.modules:  # it came with the trainer's own main module
        sys.modules["torch"].set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
