"""The shards whose rows are in use: uncompressed in scratch files, read ahead of the shuffle, bounded in bytes.

A shuffle's window may hold gigabytes of latents of which each sample reads one row. So the rows of a shard that serve
are written, uncompressed, to files without a name (which no kill leaves behind) in the folder for temporary files, and
read from a map of them: the page cache keeps what there is memory for, and a laptop's is enough. TMPDIR names another
folder.
"""

import mmap
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harmon.latents import latents_array
from harmon.training.eligible import RowBits
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import SOURCE

MOST_BYTES = 32 << 30  # of scratch files a worker has: two windows of the paper's stage 3 in shards of 10,000 rows
BATCH = 512  # rows in memory while a shard is unpacked: 33 MB of latents at 512 px
READERS = 2  # shards unpacked at a time


class Opened(Protocol):
    """What of a shard is open."""

    @property
    def bytes(self) -> int:
        """That it takes."""


@dataclass(frozen=True)
class OpenTexts:
    """The rows of one shard that serve one entry of a mixture, in order."""

    table: pa.Table
    """Columns `key` and, unless the prompt is the picture itself, `text`: a caption or a conversation."""
    sources: NDArray[np.uint16] | None
    """[rows] of which of the entry's sources each is; None where it does not name several."""

    @property
    def bytes(self) -> int:
        """Of its scratch file."""
        return int(self.table.nbytes)


@dataclass(frozen=True)
class Texts:
    """Which texts those are."""

    group: str
    column: str | None
    """None: only keys."""
    sources: tuple[str, ...] | None

    def open(self, dataset: Dataset, shard: int, serving: RowBits) -> OpenTexts:
        """Unpack them. Raises HarmonError where the shard cannot be read, or there is no room for it."""
        mask = serving.mask(dataset.rows(shard))
        with _room_for(dataset, shard):
            return OpenTexts(self._texts(dataset, shard, mask), self._sources(dataset, shard, mask))

    def _texts(self, dataset: Dataset, shard: int, mask: NDArray[np.bool_]) -> pa.Table:
        names, seen = ["key", *([self.column] if self.column else [])], 0
        with tempfile.TemporaryFile() as file:
            writer = None
            for batch in dataset.batches(self.group, shard, names, BATCH):
                kept = batch.select(names).filter(pa.array(mask[seen : seen + batch.num_rows]))
                kept = pa.RecordBatch.from_arrays(kept.columns, names=["key", "text"][: len(names)])
                writer = writer or pa.ipc.new_file(file, kept.schema)
                writer.write(kept)
                seen += batch.num_rows
            assert writer is not None  # a shard in which rows serve has rows
            writer.close()
            return pa.ipc.open_file(pa.py_buffer(_mapped(file))).read_all()

    def _sources(self, dataset: Dataset, shard: int, mask: NDArray[np.bool_]) -> NDArray[np.uint16] | None:
        if self.sources is None or len(self.sources) < 2:
            return None
        named = dataset.table(SOURCE, shard, ["source"])["source"].filter(pa.array(mask))
        places: NDArray[np.uint16] = pc.index_in(named, pa.array(self.sources)).to_numpy().astype(np.uint16)
        return places


@dataclass(frozen=True)
class OpenLatents:
    """Latents of one shard, of the rows that some entries ask for; a square picture's are held once."""

    crops: NDArray[np.float16]
    """[pictures, C * h * w] of centre squares."""
    crop_of: NDArray[np.int32]
    """[rows of the shard] place in `crops`; -1 where it has none."""
    wholes: NDArray[np.float16]
    """Of whole pictures that are not square."""
    whole_of: NDArray[np.int32]

    @property
    def bytes(self) -> int:
        """Of its scratch files."""
        return int(self.crops.nbytes + self.wholes.nbytes)

    def of(self, row: int, padded: bool) -> NDArray[np.float16]:
        """[C * h * w] of a row: of the whole picture, or of its centre square."""
        whole = padded and self.whole_of[row] >= 0
        found: NDArray[np.float16] = self.wholes[self.whole_of[row]] if whole else self.crops[self.crop_of[row]]
        return found


def open_latents(
    dataset: Dataset, shard: int, group: str, cropped: NDArray[np.bool_], padded: NDArray[np.bool_]
) -> OpenLatents:
    """Unpack the centre squares of the rows `cropped` and the whole pictures of the rows `padded` (both [rows]), in one
    reading. Raises HarmonError where the shard cannot be read, or there is no room for it.
    """
    names, seen = ["crop", *(["padded"] if padded.any() else [])], 0
    with _room_for(dataset, shard), tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        crops, wholes = _Unpacked(first, len(cropped)), _Unpacked(second, len(cropped))
        for batch in dataset.batches(group, shard, names, BATCH):
            rows, whole = slice(seen, seen + batch.num_rows), np.zeros(batch.num_rows, dtype=np.bool_)
            if "padded" in names:  # null of a square picture
                whole = padded[rows] & batch.column("padded").is_valid().to_numpy(zero_copy_only=False)
                wholes.add(batch.column("padded"), whole, seen)
            crops.add(batch.column("crop"), cropped[rows] | (padded[rows] & ~whole), seen)
            seen += batch.num_rows
        return OpenLatents(crops.values(), crops.place, wholes.values(), wholes.place)


class _Unpacked:
    """Some of a shard's latents on their way through a scratch file."""

    def __init__(self, file: BinaryIO, rows: int) -> None:
        self._file, self._count, self._size = file, 0, 1
        self.place = np.full(rows, -1, dtype=np.int32)

    def add(self, column: pa.Array, wanted: NDArray[np.bool_], first: int) -> None:
        """The rows `wanted` of `column`, whose own first is the shard's row `first`."""
        rows = np.flatnonzero(wanted)
        if len(rows):
            values = latents_array(column.take(pa.array(rows)))
            self._file.write(values.data)
            self.place[first + rows] = np.arange(self._count, self._count + len(rows))
            self._count, self._size = self._count + len(rows), values.shape[1]

    def values(self) -> NDArray[np.float16]:
        """[rows, C * h * w]"""
        if not self._count:
            return np.zeros((0, self._size), dtype=np.float16)
        return np.frombuffer(_mapped(self._file), dtype=np.float16).reshape(-1, self._size)


@contextmanager
def _room_for(dataset: Dataset, shard: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HarmonError(
            f"Shard {shard} of {dataset.root} cannot be unpacked into {tempfile.gettempdir()} ({error}); make "
            "room, or name another folder with TMPDIR."
        ) from error


Key = TypeVar("Key")
Value = TypeVar("Value", bound=Opened)


class OpenShards(Generic[Key, Value]):
    """Open shards by key; those used longest ago are closed where all together take more than `most_bytes`.

    `read_ahead` opens shards in threads before `get` asks for them. An error in a thread is raised by `get`.
    """

    def __init__(self, open_shard: Callable[[Key], Value], most_bytes: int = MOST_BYTES) -> None:
        self._open, self._most = open_shard, most_bytes
        self._shards: OrderedDict[Key, Future[Value]] = OrderedDict()  # by last use
        self._bytes = 0
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="shards")

    def get(self, key: Key) -> Value:
        """The shard, which is opened now if it is not yet. Raises HarmonError where that fails."""
        with self._lock:
            opening = self._shards.get(key) or self._begin(key)
            self._shards.move_to_end(key)
        return opening.result()

    def read_ahead(self, keys: Iterable[Key]) -> None:
        """Have them opened."""
        with self._lock:
            for key in keys:
                if key not in self._shards:
                    self._begin(key)

    @property
    def bytes(self) -> int:
        """Of the scratch files of all that are open."""
        return self._bytes

    def close(self) -> None:
        """Open nothing more; what is not begun is dropped."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _begin(self, key: Key) -> Future[Value]:
        self._shards[key] = self._readers.submit(self._opened, key)
        return self._shards[key]

    def _opened(self, key: Key) -> Value:
        shard = self._open(key)
        with self._lock:
            self._bytes += shard.bytes
            for old, opening in list(self._shards.items()):
                if self._bytes <= self._most:
                    break
                if old != key and opening.done() and not opening.exception():
                    self._bytes -= self._shards.pop(old).result().bytes  # its memory is free when nobody reads it
        return shard


def _mapped(file: BinaryIO) -> mmap.mmap:
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
