"""Features of a frozen encoder, extracted once and kept by the content of each picture.

    FOLDER/<key16>/encoder.json   what they are features of
    FOLDER/<key16>/*.parquet      the features (harmon.evaluation.kept)

`key16` begins the sha256 of the encoder's weights, the pictures' side and the pooling. A picture that two sets share,
or whose label changes, is not encoded again.

Every picture is its centre square at the encoder's side, bicubic. MAE's probe trains on random crops and flips; a
feature that is extracted once has one crop (docs/analyses.md).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harmon.evaluation.encoders import Encoder, Pooling, pooled
from harmon.evaluation.kept import Kept
from harmon.evaluation.labelled import LabelledPicture
from harmon.pictures import centre_crop
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import HarmonError

VERSION = 1  # raised when the same encoder would give other features
BATCH = 32
READ_AHEAD = 64
THREADS = min(8, os.cpu_count() or 1)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Features:
    """Features of some pictures, in their order.

    `values` is float32 [n, F]; `rows` says of which picture each is. Pictures that cannot be decoded have none and
    are counted in `unreadable`.
    """

    values: NDArray[np.float32]
    rows: tuple[int, ...]
    unreadable: int


def feature_key(encoder: Encoder, pooling: Pooling) -> str:
    """sha256 of what decides a picture's feature, besides the picture."""
    return sha256_hex(canonical_json([VERSION, encoder.key, encoder.px, pooling]))


def extract(
    encoder: Encoder,
    pictures: Sequence[LabelledPicture],
    folder: Path,
    pooling: Pooling = "mean",
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> Features:
    """Features of `pictures`; those that FOLDER holds are read, the others computed and kept there.

    Raises:
        ConfigurationError: the encoder has nothing to pool so.
        HarmonError: no picture can be decoded, or a part is damaged.
    """
    place = folder / feature_key(encoder, pooling)[:16]
    place.mkdir(parents=True, exist_ok=True)
    _describe(encoder, pooling, place)
    kept = Kept(place)
    hashes: list[str] = []
    unreadable: set[str] = set()
    waiting: dict[str, NDArray[np.float32]] = {}

    def encode() -> None:
        if waiting:
            images = torch.from_numpy(np.stack(list(waiting.values()))).to(device)
            with torch.inference_mode():
                kept.add(list(waiting), pooled(encoder, images, pooling).float().cpu().numpy())
            waiting.clear()

    for digest, pixels in _read_ahead(pictures, encoder.px, kept):
        hashes.append(digest)
        if digest not in kept:
            if pixels is None:
                unreadable.add(digest)
            else:
                waiting[digest] = pixels
        if len(waiting) == BATCH:
            encode()
        if on_progress:
            on_progress(len(hashes), len(pictures))
    encode()
    kept.write()
    rows = tuple(row for row, digest in enumerate(hashes) if digest not in unreadable)
    if not rows:
        raise HarmonError(f"None of the {len(pictures)} pictures can be decoded; name a folder of pictures.")
    return Features(kept.values([hashes[row] for row in rows]), rows, len(pictures) - len(rows))


def square(data: bytes, px: int) -> NDArray[np.float32] | None:
    """The centre square of an encoded picture, [3, px, px] in [-1, 1]; None for bytes that are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return centre_crop(opened.convert("RGB"), px)[0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _read_ahead(
    pictures: Sequence[LabelledPicture], px: int, kept: Kept
) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
    """Hash and square of each picture in order, read by threads a few ahead; what is kept is not decoded (None)."""

    def one(picture: LabelledPicture) -> tuple[str, NDArray[np.float32] | None]:
        data = picture.read()
        digest = sha256_hex(data)
        return digest, None if digest in kept else square(data, px)

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pictures), READ_AHEAD):
            yield from pool.map(one, pictures[start : start + READ_AHEAD])


def _describe(encoder: Encoder, pooling: Pooling, place: Path) -> None:
    told = {"encoder": encoder.name, "weights": encoder.key, "px": encoder.px, "pooling": pooling, "version": VERSION}
    if encoder.stand_in:
        told["stand_in"] = encoder.stand_in
    attempt = place / f".encoder.json.{os.getpid()}.part"
    attempt.write_text(json.dumps(told, indent=1) + "\n")
    attempt.replace(place / "encoder.json")


def batches(encoder: Encoder, pictures: Sequence[LabelledPicture]) -> Iterator[tuple[list[int], Tensor]]:
    """Pictures ready for the encoder, BATCH at a time, [B, 3, px, px], with their numbers; unreadable ones left out."""
    batch: list[tuple[int, NDArray[np.float32]]] = []
    for number, picture in enumerate(pictures):
        pixels = square(picture.read(), encoder.px)
        if pixels is not None:
            batch.append((number, pixels))
        if len(batch) == BATCH or (batch and number + 1 == len(pictures)):
            yield [one for one, _ in batch], torch.from_numpy(np.stack([pixels for _, pixels in batch]))
            batch = []
