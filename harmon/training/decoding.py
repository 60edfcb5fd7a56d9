"""Pictures decoded from image shards while training, ahead of the step, in processes of their own.

A picture that cannot be decoded is rejected with a reason; nothing takes its place. One that ends the process that
decodes it (a decoder's crash, memory that runs out) is rejected when it has done so twice. Which samples are decoded
depends on their numbers alone, never on which process is free.
"""

import io
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from harmon.pixels import padded_square_pixels, square_pixels
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.settings import Settings
from pipelines.shards import ImageShard

CHUNK = 8  # pictures of one request to a process: many enough that asking costs little
OPEN_SHARDS = 64  # shards that a process keeps open
UNDECODABLE, NO_IMAGE, DEADLY = "undecodable", "no_image", "ends_its_decoder"
log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]  # [px, px, 3]


class Online(Settings):
    """How pictures become latents while training, where none are stored."""

    autoencoder: str
    """Safetensors file of the frozen autoencoder."""
    crop: Literal["random", "centre"] = "random"
    """The square of a text-to-image picture: drawn anew at each visit, as the release does, or the centre."""
    draft: bool = True
    """Decode a large JPEG at 1/2, 1/4 or 1/8 while twice the wanted side is left: faster, and not the same pixels to
    the last level."""
    workers: int = Field(2, ge=0)
    """Processes that decode for each trainer; 0: none, in the trainer itself."""
    ahead: int = Field(2, ge=0)
    """Blocks of each task that are decoded before the step asks for them."""
    device: str = "cpu"
    """What the autoencoder runs on."""
    rejects: str | None = None
    """File to which a line is added for each rejected picture."""

    def contents(self, autoencoder_hash: str) -> dict[str, object]:
        """What of it decides the result."""
        return {"online": autoencoder_hash, "crop": self.crop, "draft": self.draft}


@dataclass(frozen=True)
class Wanted:
    """One picture as a sample wants it."""

    dataset: str
    shard: int
    key: str
    px: int
    padded: bool
    """The whole picture on a grey square; else a square of it."""
    at: float = 0.5
    """Where that square lies along the longer side: 0 begins it at one end, 1 at the other, 0.5 is the centre."""
    draft: bool = False


@dataclass(frozen=True)
class Rejected:
    """Why there is no picture."""

    reason: str
    """no_image, undecodable or ends_its_decoder."""
    detail: str = ""
    """What the decoder said."""


Decoded = list[Pixels | Rejected]


class Decoder:
    """Decodes pictures in `workers` processes; `ask` returns at once, and what was asked comes in any order.

    Where a process is lost, which ends them all, they are started again, and what they had not done is done with care:
    in a process apart, and if that ends too, picture by picture. Use it as a context, or call `close`: its processes
    end with it, or with this one.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = _processes(workers) if workers else None
        self._apart: ProcessPoolExecutor | None = None

    def ask(self, wanted: Sequence[Wanted]) -> list["Asked"]:
        """`wanted` in order, CHUNK pictures each."""
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        return [Asked(self, chunk, self._begin(chunk)) for chunk in chunks]

    def close(self) -> None:
        """End the processes; what was asked and not begun is dropped."""
        for pool in (self._pool, self._apart):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

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

    def _begin(self, chunk: Sequence[Wanted]) -> Future[Decoded]:
        if self._pool is None:
            done: Future[Decoded] = Future()
            done.set_result(decode(chunk))
            return done
        try:
            return self._pool.submit(decode, chunk)
        except BrokenProcessPool:
            log.warning("a process that decodes pictures was lost; %d are started again", self.workers)
            self._pool.shutdown(wait=False)
            self._pool = _processes(self.workers)
            return self._pool.submit(decode, chunk)

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


@dataclass(frozen=True)
class Asked:
    """Pictures that a `Decoder` was asked for together."""

    decoder: Decoder
    wanted: Sequence[Wanted]
    future: Future[Decoded]

    def result(self) -> Decoded:
        """Waits for them, in order. Raises HarmonError where a shard cannot be read, or no process be started."""
        try:
            return self.future.result()
        except BrokenProcessPool:
            return self.decoder.with_care(self.wanted)


def decode(wanted: Sequence[Wanted]) -> Decoded:
    """The pictures `wanted`, or why there are none.

    Raises HarmonError where a shard itself cannot be read: that is no matter of one picture.
    """
    return [_one(one) for one in wanted]


def _one(wanted: Wanted) -> Pixels | Rejected:
    image = _shard(wanted.dataset, wanted.shard).find(wanted.key)
    if image is None:
        return Rejected(NO_IMAGE)
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            if wanted.draft:
                reduce_jpeg(opened, wanted.px)
            picture = opened.convert("RGB")
        if wanted.padded:
            return padded_square_pixels(picture, wanted.px)
        return square_pixels(picture, wanted.px, wanted.at)
    except Exception as error:  # a decoder may raise anything at bytes that are wrong, and is told apart by no class
        return Rejected(UNDECODABLE, f"{type(error).__name__}: {error}"[:200])


def reduce_jpeg(picture: Image.Image, px: int) -> None:
    """Have a JPEG decoded at the smallest scale whose shorter side is at least twice `px`; others stay as they are."""
    shrink = min(picture.size) // (2 * px)
    if shrink >= 2:
        picture.draft("RGB", (picture.width // shrink, picture.height // shrink))


def _processes(number: int) -> ProcessPoolExecutor:
    # spawned, since a fork of a process with torch's threads may hang
    return ProcessPoolExecutor(number, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))


@lru_cache(maxsize=OPEN_SHARDS)
def _shard(dataset: str, number: int) -> ImageShard:
    return _dataset(dataset).images(number)


@lru_cache(maxsize=64)
def _dataset(root: str) -> Dataset:
    return Dataset(root)


def _end_with(parent: int) -> None:
    """Leave when the trainer is gone, also by kill -9: a waiting process would not notice."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
