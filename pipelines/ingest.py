"""The step that reads a published dataset with its images into shards.

Each row of the publisher's files ends once: as a row of the dataset or in the rejects. Shards never span files and are
cut before anything is read, so that any of them can be made alone, and a rerun goes on at the first that is missing.
"""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import REJECT_SCHEMA, SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Commit
from pipelines.normalise import BadPicture, Limits, normalise
from pipelines.readers.files import NativeFiles, open_reader, scratch_folder
from pipelines.readers.row import Native, Reader, named
from pipelines.readers.rules import Reject, Sample, fields_of, sample_of
from pipelines.settings import Settings
from pipelines.steps import ProgressCallback, ShardOutput, Step, StepRun
from pipelines.terms import Acceptance, terms_record
from pipelines.tombstones import REASON, Tombstones, tombstones_beside

NAME, VERSION = "ingest", 2
NOTES_SCHEMA = pa.schema([("key", pa.string()), ("note", pa.string()), ("caption_kind", pa.string())])
READING = "reading"  # group of what a rule did to each row that was kept, and what kind of caption it has

Row = dict[str, Any]


class IngestSettings(Settings):
    """What is computed from the files: part of the step's key."""

    rows_per_shard: int = Field(default=1000, ge=1)
    """Rows of a file in each shard."""
    max_bytes: int = Field(default=32 << 20, ge=1)
    """Bytes of one image; a larger one is not read."""
    limits: Limits = Limits()
    """Limits of a decoded picture, and its size as stored."""


@dataclass(frozen=True)
class Piece:
    """What one shard is made of: `rows` rows of a file, from number `first` on, where its reader begins at `cursor`."""

    shard: int
    file: str
    cursor: int
    first: int
    rows: int
    start: int
    """Rows of all files before it."""


def ingest_step(files: NativeFiles, settings: IngestSettings) -> Step:
    """The step that reads these files."""
    what = {**files.described(), **settings.model_dump(mode="json")}
    return Step(NAME, VERSION, what)


def ingest(
    dataset: Dataset,
    files: NativeFiles,
    settings: IngestSettings,
    accepted: dict[str, Acceptance],
    on_progress: ProgressCallback | None = None,
) -> Commit:
    """Read `files` into `dataset`; what an earlier attempt finished is kept.

    Groups written: images, source, reading (what a rule did to a row that was kept, and the kind of its caption).

    Raises:
        ConfigurationError: the source's terms need an acceptance that is not in `accepted`.
        HarmonError: a file is damaged, or has nothing where the catalogue entry expects a field.
    """
    terms = terms_record(files.source, accepted)
    run = StepRun(dataset, ingest_step(files, settings), on_progress)
    if run.committed:
        return run.committed
    barred = tombstones_beside(dataset)
    with tempfile.TemporaryDirectory(prefix="reading-", dir=scratch_folder()) as scratch:
        reader = open_reader(files, Path(scratch), settings.max_bytes)
        pieces, again = plan(reader, files, settings.rows_per_shard)
        pending = set(run.pending([piece.shard for piece in pieces]))
        for together in _neighbours([piece for piece in pieces if piece.shard in pending]):
            rows = reader.rows(together[0].file, together[0].cursor, together[0].first, sum(p.rows for p in together))
            for piece in together:
                cut = itertools.islice(rows, piece.rows)
                _store(run.shard(piece.shard), files, piece, cut, again, settings, barred)
    return run.commit({files.source.name: terms})


def plan(reader: Reader, files: NativeFiles, rows_per_shard: int) -> tuple[list[Piece], NDArray[np.int64]]:
    """The shards, and the rows (counted over all files) whose id an earlier row has.

    Raises HarmonError where there are no rows.
    """
    pieces: list[Piece] = []
    keys, start = bytearray(), 0
    may_repeat = bool(fields_of(files.layout).row_id)  # names by file and number cannot
    for file in reader.files:
        cursors, rows = [], 0
        for number, mark in enumerate(reader.index(file)):
            rows = number + 1
            if number % rows_per_shard == 0:
                cursors.append(mark.cursor)
            if may_repeat:
                keys += _key_bytes(files.source.name, mark.row_id, named(file, number))
        for first, cursor in zip(range(0, rows, rows_per_shard), cursors, strict=True):
            pieces.append(Piece(len(pieces), file, cursor, first, min(rows_per_shard, rows - first), start + first))
        start += rows
    if not pieces:
        raise HarmonError(f"the {len(reader.files)} files of {files.source.name} below {files.root} have no rows")
    return pieces, _repeated(np.frombuffer(bytes(keys), ">u8").reshape(-1, 2))


def _key_bytes(source: str, row_id: str | None, name: str) -> bytes:
    try:
        return bytes.fromhex(sample_key(source, row_id or name))
    except UnicodeEncodeError:  # half a surrogate pair: such a row is rejected under its name
        return bytes.fromhex(sample_key(source, name))


def _repeated(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Numbers of the rows whose key an earlier row has, ascending; 56 bytes a row while it works."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in the order of rows
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.sort(order[1:][same])


def _neighbours(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Runs of pieces that follow each other in one file, so that it is opened once for them."""
    together: list[Piece] = []
    for piece in pieces:
        if together and (piece.file, piece.shard) != (together[-1].file, together[-1].shard + 1):
            yield together
            together = []
        together.append(piece)
    if together:
        yield together


def _store(
    out: ShardOutput,
    files: NativeFiles,
    piece: Piece,
    rows: Iterator[Native],
    again: NDArray[np.int64],
    settings: IngestSettings,
    barred: Tombstones,
) -> None:
    """Write one shard: every row becomes a row or a reject, in order."""
    source = files.source
    repeated = set(
        again[np.searchsorted(again, piece.start) : np.searchsorted(again, piece.start + piece.rows)].tolist()
    )
    kept: list[Row] = []
    notes: list[Row] = []
    rejected: list[Row] = []
    seen = 0
    for number, native in enumerate(rows, start=piece.start):
        seen += 1
        sample = sample_of(source, files.layout, native)
        if isinstance(sample, Sample) and number in repeated:
            sample = Reject(sample.row_id, sample.url, "duplicate_row_id", "an earlier row has this id")
        identity = {"key": sample_key(source.name, sample.row_id), "source": source.name, "row_id": sample.row_id}
        facts = _stored(out, identity, sample, settings, barred) if isinstance(sample, Sample) else sample
        if isinstance(facts, Reject):
            rejected.append({**identity, "url": facts.url, "reason": facts.reason, "detail": facts.detail})
        elif isinstance(sample, Sample):
            kept.append({**identity, **_passed_on(sample), "terms_class": source.terms, **facts})
            notes.append({"key": identity["key"], "note": sample.note, "caption_kind": sample.caption_kind})
    if seen != piece.rows:
        raise HarmonError(
            f"{files.root / piece.file} gave {seen} rows from number {piece.first} on, not {piece.rows}: it "
            "changed while it was read; run again"
        )
    out.columns("source", pa.Table.from_pylist(kept, SOURCE_SCHEMA))
    out.columns(READING, pa.Table.from_pylist(notes, NOTES_SCHEMA))
    if rejected:
        out.rejects(pa.Table.from_pylist(rejected, REJECT_SCHEMA))
    out.finish(rows_in=seen)


def _passed_on(sample: Sample) -> Row:
    return {
        "url": sample.url,
        "caption": sample.caption,
        "task": sample.task,
        "conversations": sample.conversations,
        "licence": sample.licence,
    }


def _stored(
    out: ShardOutput, identity: Row, sample: Sample, settings: IngestSettings, barred: Tombstones
) -> Row | Reject:
    """Store a sample's image, where it has one; its columns, or why it is turned away."""
    if barred.bar_row(identity["key"], sample.url):
        return Reject(sample.row_id, None, REASON, "its key or link is in a tombstone")
    if sample.image is None:
        return {}
    if len(sample.image) > settings.max_bytes:
        return Reject(sample.row_id, sample.url, "too_large", f"more than {settings.max_bytes} bytes")
    digest = sha256_hex(sample.image)
    if barred.bar_bytes(digest):
        return Reject(sample.row_id, None, REASON, "its bytes are in a tombstone")
    try:
        picture = normalise(sample.image, settings.limits)
    except BadPicture as problem:
        return Reject(sample.row_id, sample.url, problem.reason, problem.detail)
    view = {**identity, **_passed_on(sample), "width": picture.width, "height": picture.height}
    out.images().add(identity["key"], picture.data, picture.extension, view)
    return {
        "ext": picture.extension,
        "width": picture.width,
        "height": picture.height,
        "bytes": len(sample.image),
        "sha256": digest,
    }
