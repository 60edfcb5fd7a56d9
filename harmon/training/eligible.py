"""Which rows of each shard serve an entry of a mixture, as one bit a row.

Every column that tells is read once, in batches, for all entries of its dataset together. The workers of a group share
the shards among themselves, and rank 0 keeps what was found under the hashes of what was read, so the next start, and
the next stage on the same data, read no column at all. 50 million rows take 6 MB an entry.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed as dist
from numpy.typing import NDArray

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE

VERSION = 1  # raised when the same columns would give other rows
BATCH = 1 << 13  # rows whose texts a thread has in memory: some 40 MB of long conversations
READERS = 4  # shards read at a time: in a store most of it is waiting
PATIENCE = timedelta(hours=4)  # for the slowest worker's share of the shards


@dataclass(frozen=True)
class Fact:
    """Something that one column tells of a row: that it is one of `values` or, without any, that it is usable."""

    group: str
    column: str
    values: tuple[str, ...] = ()

    def of(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Of which rows of `batch` it holds."""
        column = batch.column(self.column)
        if self.values:
            holds = pc.is_in(column, pa.array(self.values, column.type))
        elif self.column == "conversations":
            holds = have_pairs(column)
        elif pa.types.is_string(column.type) and self.column != "ext":
            holds = filled(column)
        else:
            holds = pc.is_valid(column)
        told: NDArray[np.bool_] = holds.to_numpy(zero_copy_only=False)
        return told


@dataclass(frozen=True)
class Criterion:
    """A row serves where it is `named` (of the entry's task and sources) and `usable` (its text, its picture)."""

    named: tuple[Fact, ...]
    usable: tuple[Fact, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All that must hold."""
        return self.named + self.usable


class RowBits:
    """The rows of one shard that serve, in order: a bit a row."""

    __slots__ = ("_bits", "_count")

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits = bits
        self._count = int(np.bitwise_count(bits).sum())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> int:
        """The row number of the one that serves at `place`; some ten microseconds."""
        ends = np.cumsum(np.bitwise_count(self._bits), dtype=np.int64)
        byte = int(np.searchsorted(ends, place, side="right"))
        left = place - (int(ends[byte - 1]) if byte else 0)
        return 8 * byte + int(np.flatnonzero(np.unpackbits(self._bits[byte : byte + 1]))[left])

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """Whether each of the shard's `rows` rows serves."""
        return np.unpackbits(self._bits, count=rows).astype(np.bool_)


@dataclass(frozen=True)
class Serving:
    """The rows of one dataset that serve one entry, by shard, and how many are named and not usable."""

    shards: Mapping[int, RowBits]
    left_out: int


_Found = dict[int, tuple[NDArray[np.uint8], int]]  # by shard: its bits, and how many rows are left out
_Asked = tuple[str, Criterion]  # a dataset's root, and what is asked of its rows


def find_serving(
    datasets: Mapping[str, Dataset], asked: Sequence[_Asked], kept: Path | None, keeps: bool = True
) -> list[Serving]:
    """The rows that serve each of `asked`, which names datasets as `datasets` does.

    `kept` is the folder with what earlier starts found, read by rank 0 alone; None: there is none. Without `keeps`
    nothing is written there. Where a torch.distributed group is up, all of its workers call this together.
    """
    unique = list(dict.fromkeys(asked))
    files: list[Path | None] = [None] * len(unique)
    if kept is not None:
        files = [kept / f"{key}.npz" for key in criterion_keys(datasets, unique)]
    group = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None
    known = _from_first([_read(file) for file in files] if _rank(group) == 0 else None, group)
    missing = [place for place, found in enumerate(known) if found is None]
    for share in _from_all(_scan(datasets, [unique[place] for place in missing], group), group):
        for place, found in zip(missing, share, strict=True):
            known[place] = (known[place] or {}) | found
    if _rank(group) == 0 and keeps:
        for place in missing:
            _write(files[place], known[place])
    serving = {one: _serving(found) for one, found in zip(unique, known, strict=True)}
    return [serving[one] for one in asked]


def have_pairs(conversations: pa.Array) -> pa.Array:
    """Which rows have any of `harmon.training.rows.pairs_of` (bool), found in whole columns: a stage may have millions
    of rows.
    """
    turns, row_of = pc.list_flatten(conversations), pc.list_parent_indices(conversations).to_numpy()
    spoken = filled(pc.struct_field(turns, "text"))
    asked, told = (
        pc.and_(pc.equal(pc.struct_field(turns, "role"), role), spoken).fill_null(False).to_numpy(zero_copy_only=False)
        for role in ("user", "assistant")
    )
    found = np.zeros(len(conversations), dtype=np.bool_)
    found[row_of[:-1][asked[:-1] & told[1:] & (row_of[:-1] == row_of[1:])]] = True
    return pa.array(found)


def filled(texts: pa.Array) -> pa.Array:
    """Which texts are neither null nor empty."""
    return pc.fill_null(pc.greater(pc.utf8_length(texts), 0), False)


def _scan(datasets: Mapping[str, Dataset], asked: Sequence[_Asked], group: Any) -> list[_Found]:
    """What this worker's share of the shards says of each of `asked`."""
    criteria: dict[str, list[Criterion]] = {}
    for root, criterion in asked:
        criteria.setdefault(root, []).append(criterion)
    world = 1 if group is None else dist.get_world_size(group)
    found: dict[_Asked, _Found] = {one: {} for one in asked}
    for root, of_it in criteria.items():
        shards = datasets[root].shard_numbers[_rank(group) :: world]
        with ThreadPoolExecutor(READERS) as readers:
            told = readers.map(lambda shard, root=root, of_it=of_it: _of_shard(datasets[root], of_it, shard), shards)
            for shard, results in zip(shards, told, strict=True):
                for criterion, result in zip(of_it, results, strict=True):
                    found[root, criterion][shard] = result
    return [found[one] for one in asked]


def _of_shard(dataset: Dataset, criteria: Sequence[Criterion], shard: int) -> list[tuple[NDArray[np.uint8], int]]:
    facts = list(dict.fromkeys(fact for criterion in criteria for fact in criterion.facts))
    holds: dict[Fact, list[NDArray[np.bool_]]] = {fact: [] for fact in facts}
    for group in dict.fromkeys(fact.group for fact in facts):
        own = [fact for fact in facts if fact.group == group]
        for batch in dataset.batches(group, shard, list(dict.fromkeys(fact.column for fact in own)), BATCH):
            for fact in own:
                holds[fact].append(fact.of(batch))
    whole = {fact: np.concatenate([*parts, np.zeros(0, np.bool_)]) for fact, parts in holds.items()}
    results = []
    for criterion in criteria:
        named = reduce(np.logical_and, [whole[fact] for fact in criterion.named])
        usable = reduce(np.logical_and, [whole[fact] for fact in criterion.usable], named)
        results.append((np.packbits(usable), int(named.sum() - usable.sum())))
    return results


def _serving(found: _Found) -> Serving:
    shards = {shard: RowBits(bits) for shard, (bits, _) in sorted(found.items())}
    return Serving(shards, sum(left_out for _, left_out in found.values()))


def criterion_keys(datasets: Mapping[str, Dataset], asked: Sequence[_Asked]) -> list[str]:
    """For each of `asked`, the hash of all that decides which rows serve: the criterion, and the contents of the groups
    that it reads, each hashed once.
    """
    hashes: dict[tuple[str, str], str] = {}
    keys = []
    for root, criterion in asked:
        groups = sorted({fact.group for fact in criterion.facts}) if datasets[root].entries(SOURCE) else []
        for group in groups:
            if (root, group) not in hashes:
                hashes[root, group] = datasets[root].group_hash(group)
        read = {group: hashes[root, group] for group in groups}
        keys.append(sha256_hex(canonical_json({"version": VERSION, "criterion": asdict(criterion), "groups": read})))
    return keys


def _read(file: Path | None) -> _Found | None:
    """What was found before; None where it is not there, or cannot be read, and is looked up again."""
    try:
        if file is None:
            return None
        with np.load(file, allow_pickle=False) as arrays:
            shards, ends, left_out, bits = (arrays[name] for name in ("shards", "ends", "left_out", "bits"))
            parts = [bits[first:last] for first, last in pairwise([0, *ends])]
            return {int(one): (part, int(out)) for one, part, out in zip(shards, parts, left_out, strict=True)}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _write(file: Path | None, found: _Found | None) -> None:
    if file is None or not found:
        return
    parts = [bits for bits, _ in found.values()]
    file.parent.mkdir(parents=True, exist_ok=True)
    attempt = file.with_name(f".{file.name}.part")
    with attempt.open("wb") as stream:
        np.savez(
            stream,
            shards=np.array(list(found), dtype=np.int64),
            ends=np.cumsum([len(part) for part in parts], dtype=np.int64),
            left_out=np.array([out for _, out in found.values()], dtype=np.int64),
            bits=np.concatenate(parts),
        )
    attempt.replace(file)


def _rank(group: Any) -> int:
    return 0 if group is None else dist.get_rank(group)


def _from_first(value: Any, group: Any) -> Any:
    """Rank 0's value, at all workers."""
    if group is None:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, group=group)
    return told[0]


def _from_all(value: Any, group: Any) -> list[Any]:
    """The values of all workers."""
    if group is None:
        return [value]
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, value, group=group)
    return told
