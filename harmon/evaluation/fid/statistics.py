"""Features of sets of pictures, and the statistics of reference sets, kept by content.

    FOLDER/<key16>/extractor.json          network, weights and preparation
    FOLDER/<key16>/*.parquet               features by the sha256 of each picture (harmon.evaluation.kept)
    FOLDER/<key16>/statistics-<set16>.npz  mu, sigma and n of a reference set, as other tools read them

`key16` begins the sha256 of extractor, weights and preparation; `set16` that of the set's hash: the sha256 of its
pictures' own, in order. So neither a renamed nor a moved set is computed again, and one with a changed picture is.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harmon.evaluation.fid.inception import FEATURES, Extractor
from harmon.evaluation.fid.preparation import Preparation
from harmon.evaluation.kept import Kept
from harmon.evaluation.question import Picture, opened
from harmon.evaluation.scorers.fid import Moments, moments
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import HarmonError
from pipelines.storage import file_sha256

BATCH = 32
READ_AHEAD = 64
THREADS = min(8, os.cpu_count() or 1)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class SetFeatures:
    """Features [n, 2048] of a set's pictures in their order, and the pictures' own sha256."""

    values: NDArray[np.float32]
    hashes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of a reference set, and what the set is known by: `set:` or `file:` with a sha256."""

    moments: Moments
    identity: str


class FidStore:
    """Features and statistics of one extractor and preparation, below a folder."""

    def __init__(self, folder: Path, extractor: Extractor, preparation: Preparation) -> None:
        self.extractor, self.preparation = extractor, preparation
        told = {
            "extractor": extractor.label,
            "weights": extractor.weights_sha256,
            "features": extractor.key,
            "preparation": preparation.report(),
        }
        self.key = sha256_hex(canonical_json(told))
        self.folder = folder / self.key[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        _put(self.folder / "extractor.json", json.dumps(told, indent=1).encode() + b"\n")
        self._kept = Kept(self.folder)

    def features(self, pictures: Sequence[Picture], on_progress: Progress | None = None) -> SetFeatures:
        """Features of all `pictures`; those that the folder holds are read, the others computed and kept.

        Raises HarmonError where a picture is missing or cannot be decoded: no FID leaves pictures out.
        """
        hashes: list[str] = []
        waiting: dict[str, Tensor] = {}
        for digest, ready in self._read_ahead(pictures):
            hashes.append(digest)
            if ready is not None and digest not in self._kept:
                waiting[digest] = ready
            if len(waiting) == BATCH:
                self._extract(waiting)
            if on_progress:
                on_progress(len(hashes), len(pictures))
        self._extract(waiting)
        self._kept.write()
        if not hashes:
            raise HarmonError("FID of no picture; name some.")
        return SetFeatures(self._kept.values(hashes), tuple(hashes))

    def statistics(self, pictures: Sequence[Picture], on_progress: Progress | None = None) -> Statistics:
        """Statistics of a reference set, computed once. Raises as `features`."""
        with ThreadPoolExecutor(THREADS) as pool:
            hashes: list[str] = []
            for start in range(0, len(pictures), READ_AHEAD):
                hashes += pool.map(_hash, pictures[start : start + READ_AHEAD])
        digest = set_hash(hashes)
        path = self.folder / f"statistics-{digest[:16]}.npz"
        if path.exists():
            found = read_moments(path)
            if found.n == len(hashes):
                return Statistics(found, f"set:{digest}")
        computed = moments(self.features(pictures, on_progress).values)
        stored = io.BytesIO()
        np.savez(stored, mu=computed.mean, sigma=computed.covariance, n=len(hashes), set_sha256=digest)
        _put(path, stored.getvalue())
        return Statistics(computed, f"set:{digest}")

    def _extract(self, waiting: dict[str, Tensor]) -> None:
        if waiting:
            self._kept.add(list(waiting), self.extractor.features(list(waiting.values())))
            waiting.clear()

    def _read_ahead(self, pictures: Sequence[Picture]) -> Iterator[tuple[str, Tensor | None]]:
        """Hash and input of each picture in order, made by threads a few ahead; what is kept is not decoded (None)."""

        def one(picture: Picture) -> tuple[str, Tensor | None]:
            data = picture.read()
            digest = sha256_hex(data)
            if digest in self._kept:
                return digest, None
            return digest, self.extractor.input(self.preparation.apply(opened(data, picture.where)))

        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(pictures), READ_AHEAD):
                yield from pool.map(one, pictures[start : start + READ_AHEAD])


def set_hash(hashes: Sequence[str]) -> str:
    """sha256 of a set of pictures by theirs: their order and names do not matter, their number does."""
    return sha256_hex("".join(f"{digest}\n" for digest in sorted(hashes)).encode())


def published_statistics(path: Path) -> Statistics:
    """Statistics that others computed (`mu` and `sigma` of an .npz file, as pytorch-fid and clean-fid write them).

    With which network, preparation and pictures they do not say: whoever names the file vouches for that.
    """
    found = read_moments(path)
    if len(found.mean) != FEATURES:
        raise HarmonError(f"{path} has statistics of {len(found.mean)} features, where Inception has {FEATURES}.")
    return Statistics(found, f"file:{file_sha256(path)}")


def read_moments(path: Path) -> Moments:
    """Mean and covariance of an .npz file. Raises HarmonError where it is damaged or holds something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            n = int(stored["n"]) if "n" in stored else None
            return Moments(stored["mu"].astype(np.float64), stored["sigma"].astype(np.float64), n)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as problem:
        raise HarmonError(
            f"The statistics {path} cannot be read ({problem}); delete the file or fetch it anew."
        ) from None


def _hash(picture: Picture) -> str:
    return sha256_hex(picture.read())


def _put(path: Path, data: bytes) -> None:
    attempt = path.with_name(f".{path.name}.{os.getpid()}.part")
    attempt.write_bytes(data)
    attempt.replace(path)
