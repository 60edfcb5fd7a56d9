"""Keys of a whole dataset: read as bytes, hashed as they are recorded, and proven unique in bounded memory."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.canonical import keys_sha256
from pipelines.columns import read_columns
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.findings import Finding, found
from pipelines.manifest import FileEntry

LENGTH = 32  # hex digits of a key
PART = 1 << 22  # keys that are sorted at a time: 64 MiB
PARTS = 1024  # files that may be open at once; beyond 4 billion rows parts grow
IN_MEMORY = 64 << 20  # bytes of keys held before they go to a temporary file
TOLD = 100  # duplicated keys named: the first hundred tell the story

NIBBLE = np.full(256, 255, np.uint8)
NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def digits(column: pa.ChunkedArray) -> NDArray[np.uint8] | None:
    """A column of keys as ASCII [n, 32], without a copy where it is one chunk; None if one is not 32 bytes long."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_string(array.type) or array.null_count:
        return None
    _, offsets_buffer, data = array.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[array.offset : array.offset + len(array) + 1]
    if len(array) == 0:
        return np.zeros((0, LENGTH), np.uint8)
    if (np.diff(offsets) != LENGTH).any():
        return None
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].reshape(-1, LENGTH)


def column_sha256(column: pa.ChunkedArray) -> str:
    """`keys_sha256` of a column, without making a Python string of each key."""
    keys = digits(column)
    if keys is None:
        return keys_sha256(str(key) for key in column.to_pylist())
    lines = np.empty((len(keys), LENGTH + 1), np.uint8)
    lines[:, :LENGTH] = keys
    lines[:, LENGTH] = ord("\n")
    return hashlib.sha256(lines.data).hexdigest()


def words(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Keys as uint64 [n, 2], 16 bytes each. Raises HarmonError for what is no key."""
    keys = digits(column)
    nibbles = NIBBLE[keys] if keys is not None else np.full(1, 255, np.uint8)
    if (nibbles == 255).any():
        wrong = next((key for key in column.to_pylist() if not _is_key(key)), None)
        raise HarmonError(f"{wrong!r} is not a key of {LENGTH} lower-case hex digits")
    packed = (nibbles[:, ::2] << 4) | nibbles[:, 1::2]
    return packed.view(">u8").astype(np.uint64)


def _is_key(key: object) -> bool:
    return isinstance(key, str) and len(key) == LENGTH and set(key) <= set("0123456789abcdef")


class UniqueKeys:
    """Finds keys that come twice among any number, 16 bytes each, in bounded memory.

    Keys go to parts by their first bits, each part a temporary file once it has grown; then one part at a time
    is sorted. Memory is about 200 MiB whatever the number of rows.
    """

    def __init__(self, rows: int) -> None:
        """`rows`: how many are expected; more are fine."""
        self._bits = min(PARTS - 1, max(0, rows - 1) // PART).bit_length()
        limit = IN_MEMORY >> self._bits
        self._parts: list[IO[bytes]] = [tempfile.SpooledTemporaryFile(limit) for _ in range(1 << self._bits)]  # noqa: SIM115

    def add(self, keys: NDArray[np.uint64]) -> None:
        """More keys, uint64 [n, 2]."""
        if self._bits == 0:
            self._parts[0].write(keys.tobytes())
            return
        part = (keys[:, 0] >> np.uint64(64 - self._bits)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        ends = np.cumsum(np.bincount(part, minlength=len(self._parts)))
        keys = keys[order]
        for number, (start, end) in enumerate(zip((0, *ends[:-1]), ends)):
            self._parts[number].write(keys[start:end].tobytes())

    def duplicates(self) -> list[str]:
        """Keys that were added more than once, each once, at most TOLD; ends the collection."""
        twice: list[str] = []
        for part in self._parts:
            part.seek(0)
            keys = np.frombuffer(part.read(), np.uint64).reshape(-1, 2)
            part.close()
            first = np.sort(keys[:, 0])
            again = np.unique(first[1:][first[1:] == first[:-1]])
            if (
                len(again) and len(twice) < TOLD
            ):  # equal in the first half: of 50 million keys that is a duplicate, or chance of 1 in 10,000
                suspects, counts = np.unique(keys[np.isin(keys[:, 0], again)], axis=0, return_counts=True)
                twice += [f"{int(a):016x}{int(b):016x}" for a, b in suspects[counts > 1][: TOLD - len(twice)]]
        return twice[:TOLD]


def locate_duplicates(dataset: Dataset, entries: Sequence[FileEntry], twice: Sequence[str]) -> Iterator[Finding]:
    """Where the duplicated keys stand: reads the keys of `entries` once more."""
    wanted = set(twice)
    seen: dict[str, FileEntry] = {}
    for entry in entries if wanted else ():
        try:
            keys = read_columns(dataset.store.readable(entry.path), ["key"])["key"].to_pylist()
        except HarmonError:
            continue  # unreadable: reported for the file itself
        for key in keys:
            if key in wanted and key in seen:
                detail = f"the key {key} is in shard {seen[key].shard} and again in shard {entry.shard}"
                yield found("key_duplicated", entry.path, detail)
            elif key in wanted:
                seen[key] = entry
