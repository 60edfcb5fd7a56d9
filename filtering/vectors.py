"""Embeddings as a column holds them (fp16 lists, null where a row has none), and what heads make of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import HarmonError

Halves = NDArray[np.float16]
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


def stored(column: pa.ChunkedArray) -> tuple[Halves, Rows]:
    """Embeddings [M, D] of the rows that have one, and the numbers of those rows.

    Raises HarmonError where they differ in length.
    """
    there = np.flatnonzero(np.asarray(column.is_valid(), dtype=bool))
    if not len(there):
        return np.zeros((0, 0), np.float16), there
    lists = column.drop_null().combine_chunks()
    if len(lengths := pc.unique(pc.list_value_length(lists))) != 1:
        raise HarmonError(f"The column of embeddings holds vectors of different lengths: {lengths.to_pylist()}.")
    values: NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float16, copy=False).reshape(len(there), -1), there


def unit(vectors: NDArray[Any]) -> Vectors:
    """Vectors [M, D] as float32 of length 1; a zero vector stays zero."""
    wide = vectors.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    found: Vectors = np.divide(wide, np.where(lengths == 0, 1, lengths), dtype=np.float32)
    return found


def scored(table: pa.Table, score: Callable[[Halves], NDArray[Any]]) -> pa.Table:
    """key, score, status and reason of the rows of a table of embeddings; rows without one keep their reason."""
    halves, there = stored(table.column("embedding"))
    missing = np.ones(table.num_rows, bool)
    missing[there] = False
    scores = np.zeros(table.num_rows, np.float32)
    if len(there):
        scores[there] = score(halves)
    columns = {"key": table.column("key"), "score": pa.array(scores, mask=missing)}
    return pa.table(columns | {name: table.column(name) for name in ("status", "reason")})
