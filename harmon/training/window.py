"""The shards whose rows are in use: uncompressed in scratch files, read ahead of the shuffle, bounded in bytes.

A shuffle's window may hold gigabytes of latents of which each sample reads one row. So the rows of a shard that serve
an entry are written, uncompressed, to a file without a name (which no kill leaves behind) in the folder for temporary
files, and read from a map of it: the page cache keeps what there is memory for, and a laptop's is enough. TMPDIR names
another folder.
"""

import mmap
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harmon.latents import latents_array
from harmon.training.eligible import RowBits
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError

MOST_BYTES = 32 << 30  # of scratch files a worker has: two windows of the paper's stage 3 in shards of 10,000 rows
BATCH = 512  # rows in memory while a shard is unpacked: 33 MB of latents at 512 px
READERS = 2  # shards unpacked at a time
Key = TypeVar("Key")


@dataclass(frozen=True)
class OpenShard:
    """What one entry of a mixture needs of one shard: its rows that serve, in order."""

    texts: pa.Table
    """Columns `key` and, unless the prompt is the picture itself, `text`: a caption or a conversation."""
    latents: NDArray[np.float16] | None
    """[rows, C * h * w]"""

    @property
    def bytes(self) -> int:
        """Of its scratch files."""
        return int(self.texts.nbytes) + (0 if self.latents is None else self.latents.nbytes)


@dataclass(frozen=True)
class Columns:
    """Which columns those are."""

    text_group: str
    text: str | None
    """Column with the text; None: only keys."""
    latents_group: str | None
    padded: bool
    """The whole picture's latents, where it is not square; else the centre square's."""

    def open(self, dataset: Dataset, shard: int, serving: RowBits) -> OpenShard:
        """Unpack them. Raises HarmonError where the shard cannot be read, or there is no room for it."""
        mask = serving.mask(dataset.rows(shard))
        try:
            return OpenShard(self._texts(dataset, shard, mask), self._latents(dataset, shard, mask))
        except OSError as error:
            raise HarmonError(
                f"Shard {shard} of {dataset.root} cannot be unpacked into {tempfile.gettempdir()} ({error}); make "
                "room, or name another folder with TMPDIR."
            ) from error

    def _texts(self, dataset: Dataset, shard: int, mask: NDArray[np.bool_]) -> pa.Table:
        names, seen = ["key", *([self.text] if self.text else [])], 0
        with tempfile.TemporaryFile() as file:
            writer = None
            for batch in dataset.batches(self.text_group, shard, names, BATCH):
                kept = batch.select(names).filter(pa.array(mask[seen : seen + batch.num_rows]))
                kept = pa.RecordBatch.from_arrays(kept.columns, names=["key", "text"][: len(names)])
                writer = writer or pa.ipc.new_file(file, kept.schema)
                writer.write(kept)
                seen += batch.num_rows
            assert writer is not None  # a shard in which rows serve has rows
            writer.close()
            return pa.ipc.open_file(pa.py_buffer(_mapped(file))).read_all()

    def _latents(self, dataset: Dataset, shard: int, mask: NDArray[np.bool_]) -> NDArray[np.float16] | None:
        if self.latents_group is None:
            return None
        names, seen, size = ["crop", *(["padded"] if self.padded else [])], 0, 0
        with tempfile.TemporaryFile() as file:
            for batch in dataset.batches(self.latents_group, shard, names, BATCH):
                values = latents_array(batch.column("crop"))
                if self.padded:  # a square picture has no padded latents of its own
                    padded = batch.column("padded").is_valid().to_numpy(zero_copy_only=False)
                    values[padded] = latents_array(batch.column("padded"))[padded]
                file.write(np.ascontiguousarray(values[mask[seen : seen + batch.num_rows]]).data)
                seen, size = seen + batch.num_rows, values.shape[1]
            return np.frombuffer(_mapped(file), dtype=np.float16).reshape(-1, size)


class OpenShards(Generic[Key]):
    """Open shards by key; those used longest ago are closed where all together take more than `most_bytes`.

    `read_ahead` opens shards in threads before `get` asks for them. An error in a thread is raised by `get`.
    """

    def __init__(self, open_shard: Callable[[Key], OpenShard], most_bytes: int = MOST_BYTES) -> None:
        self._open, self._most = open_shard, most_bytes
        self._shards: OrderedDict[Key, Future[OpenShard]] = OrderedDict()  # by last use
        self._bytes = 0
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="shards")

    def get(self, key: Key) -> OpenShard:
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

    def _begin(self, key: Key) -> Future[OpenShard]:
        self._shards[key] = self._readers.submit(self._opened, key)
        return self._shards[key]

    def _opened(self, key: Key) -> OpenShard:
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
