"""Features that are kept by the content of each picture, in a folder of Parquet parts.

    FOLDER/*.parquet     sha256 of a picture's bytes, its feature as float32[F]

A part appears whole and its name is the hash of its rows, so a killed extraction goes on behind the last part, two may
run at once, and a picture that two sets share is not computed again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.canonical import sha256_hex
from pipelines.errors import HarmonError

PART_ROWS = 512  # of one file: what a killed extraction computes again at most


class Kept:
    """The parts of one folder, and rows that are not yet written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        parts = [_read(path) for path in sorted(folder.glob("*.parquet"))]
        self.stored = [values for _, values in parts]
        self.place = {digest: row for row, digest in enumerate(digest for part, _ in parts for digest in part)}
        self.new: list[tuple[str, NDArray[np.float32]]] = []
        self.known = set(self.place)

    def __contains__(self, digest: str) -> bool:
        return digest in self.known

    def add(self, hashes: Sequence[str], features_BF: NDArray[np.float32]) -> None:
        """One feature for each picture's hash; every PART_ROWS of them are written."""
        self.new += zip(hashes, features_BF, strict=True)
        self.known |= set(hashes)
        if len(self.new) >= PART_ROWS:
            self.write()

    def write(self) -> None:
        """Keep the new rows as one more part."""
        if not self.new:
            return
        hashes, values = [digest for digest, _ in self.new], np.stack([value for _, value in self.new])
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        final = self.folder / f"{sha256_hex(chr(10).join(hashes).encode())[:16]}.parquet"
        attempt = final.with_name(f".{final.name}.{os.getpid()}.part")
        pq.write_table(pa.table({"sha256": hashes, "feature": column}), attempt)
        attempt.replace(final)
        start = len(self.place)
        self.place |= {digest: start + row for row, digest in enumerate(hashes)}
        self.stored.append(values)
        self.new = []

    def values(self, hashes: Sequence[str]) -> NDArray[np.float32]:
        """Features of these pictures, [n, F]."""
        found: NDArray[np.float32] = np.concatenate(self.stored)[[self.place[digest] for digest in hashes]]
        return found


def _read(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    try:
        table = pq.read_table(path, columns=["sha256", "feature"])
        column = table["feature"].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise HarmonError(f"The features {path} cannot be read ({error}); delete the file, it is made again.") from None
    return table["sha256"].to_pylist(), values.astype(np.float32)
