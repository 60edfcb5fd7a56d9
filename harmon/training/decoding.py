"""Pictures decoded from image shards while training, ahead of the step, in processes of their own.

A picture that cannot be decoded is rejected with a reason; nothing takes its place. Which samples are decoded depends
on their numbers alone, never on which process is free.
"""

import io
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
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
from pipelines.settings import Settings
from pipelines.shards import ImageShard

CHUNK = 8  # pictures of one request to a process: many enough that asking costs little
OPEN_SHARDS = 64  # shards that a process keeps open
UNDECODABLE, NO_IMAGE = "undecodable", "no_image"
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


class Decoder:
    """Decodes pictures in `workers` processes; `ask` returns at once, and the futures come in any order.

    Use it as a context, or call `close`: its processes end with it, or with this one.
    """

    def __init__(self, workers: int) -> None:
        # spawned, since a fork of a process with torch's threads may hang
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))
            if workers
            else None
        )

    def ask(self, wanted: Sequence[Wanted]) -> list[Future[list[Pixels | str]]]:
        """Futures of `wanted` in order, CHUNK pictures each: pixels, or the reason why there are none."""
        chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
        if self._pool is not None:
            return [self._pool.submit(decode, chunk) for chunk in chunks]
        return [_done(decode(chunk)) for chunk in chunks]

    def close(self) -> None:
        """End the processes; what was asked and not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def decode(wanted: Sequence[Wanted]) -> list[Pixels | str]:
    """The pictures `wanted`, or why there are none: `no_image` or `undecodable`.

    Raises HarmonError where a shard itself cannot be read: that is no matter of one picture.
    """
    return [_one(one) for one in wanted]


def _one(wanted: Wanted) -> Pixels | str:
    image = _shard(wanted.dataset, wanted.shard).find(wanted.key)
    if image is None:
        return NO_IMAGE
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            if wanted.draft:
                _reduce(opened, wanted.px)
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return UNDECODABLE
    return padded_square_pixels(picture, wanted.px) if wanted.padded else square_pixels(picture, wanted.px, wanted.at)


def _reduce(picture: Image.Image, px: int) -> None:
    """Have a JPEG decoded at the smallest scale whose shorter side is at least twice `px`; others stay as they are."""
    shrink = min(picture.size) // (2 * px)
    if shrink >= 2:
        picture.draft("RGB", (picture.width // shrink, picture.height // shrink))


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


def _done(result: list[Pixels | str]) -> Future[list[Pixels | str]]:
    future: Future[list[Pixels | str]] = Future()
    future.set_result(result)
    return future
