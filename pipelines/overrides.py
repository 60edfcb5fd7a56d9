"""The step that adds published captions to a dataset that stands, in place of running a captioner over it.

They are joined by link, or by the key of a member, with or without its tar's name; the join lies on disk, so memory
does not grow with their number. Of two captions for one link the first stays, since they describe one image. Members of
one key in two tars may be two images, so a key that has two captions, or two rows, is an error.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.layouts import UrlTable
from pipelines.manifest import SOURCE, Commit
from pipelines.readers.files import NativeFiles, open_reader, scratch_folder
from pipelines.readers.links import LinkReader
from pipelines.readers.row import Native, text_of
from pipelines.readers.rules import cleaned, cleaning, fields_of
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.terms import Acceptance, terms_record

NAME, VERSION = "captions", 1
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "text", "status", "reason")])
Row = dict[str, str | None]
MAX_ROW = 1 << 20  # files of captions hold no images; a member larger than this is none of them


def captions_step(dataset: Dataset, files: NativeFiles) -> Step:
    """The step that adds these captions."""
    return Step(NAME, VERSION, files.described(), (Reads(dataset, (SOURCE,)),))


def captions_group(step: Step) -> str:
    """The column group that the step writes: `caption.published-NAME-` and eight digits of what was read."""
    told = sha256_hex(canonical_json(step.configuration))[:8]
    return f"caption.published-{step.configuration['source']}-{told}"


def add_captions(
    dataset: Dataset,
    files: NativeFiles,
    accepted: dict[str, Acceptance],
    on_progress: ProgressCallback | None = None,
) -> Commit:
    """Write the group `captions_group`: text, or the reason why a row has none, for every row of `dataset`.

    Raises:
        ConfigurationError: the terms of the captions need an acceptance; the dataset has no row that they describe.
        HarmonError: none of them belongs to a row; a file is damaged or lacks a field.
    """
    source = files.source
    terms = terms_record(source, accepted)
    assert source.override is not None
    if dataset.head is None:
        raise ConfigurationError(
            f"{source.name} holds captions for {', '.join(source.override.of)}, and {dataset.root} has no rows; "
            "download one of those there first."
        )
    step = captions_step(dataset, files)
    run = StepRun(dataset, step, on_progress)
    if run.committed:
        return run.committed
    with tempfile.TemporaryDirectory(prefix="captions-", dir=scratch_folder()) as scratch:
        pending = run.pending(dataset.shard_numbers)
        table = _Captions(files, Path(scratch))
        described = (row for shard in dataset.shard_numbers for row in _described(dataset, shard))
        if not table.describes(described):
            raise HarmonError(
                f"none of the {table.rows} captions of {source.name} belongs to a row of {dataset.root}: its links or "
                f"members are called otherwise (a caption is for {table.example!r})"
            )
        for shard in pending:
            told = [table.row(row) for row in _described(dataset, shard)]
            out = run.shard(shard)
            out.columns(captions_group(step), pa.Table.from_pylist(told, SCHEMA))
            out.finish(rows_in=len(told))
    return run.commit({source.name: terms})


def _described(dataset: Dataset, shard: int) -> Iterator[Row]:
    """What captions are joined to, a row at a time."""
    for batch in dataset.table(SOURCE, shard, ["key", "source", "row_id", "url"]).to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


class _Captions:
    """Captions by link or member."""

    def __init__(self, files: NativeFiles, scratch: Path) -> None:
        override = files.source.override
        assert override is not None
        self._by, self._of = override.by, frozenset(override.of)
        self._db = sqlite3.connect(scratch / "captions.sqlite", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE caption (of TEXT PRIMARY KEY, text TEXT, name TEXT) WITHOUT ROWID;"
            "CREATE TABLE row (of TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID; BEGIN;"
        )
        for of, text, name in self._read(files, scratch):
            self._add(of, text, name)
        self._db.execute("COMMIT")
        self.rows: int = self._db.execute("SELECT count(*) FROM caption").fetchone()[0]
        first = self._db.execute("SELECT of FROM caption LIMIT 1").fetchone()
        self.example: str | None = first[0] if first else None

    def _add(self, of: str, text: str, name: str) -> None:
        if self._db.execute("INSERT OR IGNORE INTO caption VALUES (?,?,?)", (of, text, name)).rowcount:
            return
        there, first = self._db.execute("SELECT text, name FROM caption WHERE of=?", (of,)).fetchone()
        if there != text and self._by != "url":
            raise HarmonError(f"{first} and {name} are captions of one key and differ, so {self._unjoined}")

    def describes(self, rows: Iterable[Row]) -> bool:
        """Whether a caption belongs to any of the rows, which are all of the dataset.

        Raises HarmonError where two of them have one key.
        """
        found = False
        self._db.execute("BEGIN")
        for row in rows:
            if row["source"] not in self._of:
                continue
            of, name = self._key(row["url"], row["row_id"] or ""), row["row_id"]
            found = found or self._text(of) is not None
            if self._by == "url":
                if found:
                    break
            elif not self._db.execute("INSERT OR IGNORE INTO row VALUES (?,?)", (of, name)).rowcount:
                (first,) = self._db.execute("SELECT name FROM row WHERE of=?", (of,)).fetchone()
                raise HarmonError(f"{first} and {name} are rows of one key, so {self._unjoined}")
        self._db.execute("COMMIT")
        return found

    @property
    def _unjoined(self) -> str:
        if self._by == "tar-member":
            return "captions cannot be joined by tar and key"
        return (
            "captions cannot be joined by key alone; where the tars of both have the same names, join by those too: "
            "--set override.by=tar-member"
        )

    def _read(self, files: NativeFiles, scratch: Path) -> Iterator[tuple[str, str, str]]:
        """What each caption is for, its text, and the file and row that it stands in."""
        fields = fields_of(files.layout)
        for native in _rows(files, scratch):
            try:
                of = self._key(text_of(native.record, fields.url) if self._by == "url" else None, native.name)
                how = cleaning(files.source.captions, native.record, fields)
                text = cleaned(text_of(native.record, fields.caption), how)
                if native.problem is None and of and text:
                    yield of.encode().decode(), text.encode().decode(), native.name
            except (TypeError, UnicodeEncodeError):
                continue  # no text: the row it is for is told that it has none

    def _key(self, url: str | None, name: str) -> str | None:
        """What captions and rows are joined by."""
        return url if self._by == "url" else member_of(name, with_tar=self._by == "tar-member")

    def _text(self, of: str | None) -> str | None:
        hit = self._db.execute("SELECT text FROM caption WHERE of=?", (of,)).fetchone()
        return str(hit[0]) if hit else None

    def row(self, row: Row) -> Row:
        """The row of the group for a row of source."""
        empty: Row = {"key": row["key"], "text": None, "status": "failed", "reason": "no_published_caption"}
        if row["source"] not in self._of:
            return {**empty, "reason": "other_source"}
        text = self._text(self._key(row["url"], row["row_id"] or ""))
        return empty if text is None else {**empty, "text": text, "status": "ok", "reason": None}


def member_of(name: str, with_tar: bool = False) -> str:
    """The key of a member, from a row's name: part/7.tar#folder/000123 gives 000123, with its tar 7/000123."""
    tar, _, member = name.rpartition("#")
    key = member.rpartition("/")[2]
    return f"{tar.rpartition('/')[2].partition('.')[0]}/{key}" if with_tar else key


def _rows(files: NativeFiles, scratch: Path) -> Iterator[Native]:
    if isinstance(files.layout, UrlTable):
        links = LinkReader(files.root, files.tables, files.layout)
        for file in links.files:
            yield from links.rows(file)
        return
    reader = open_reader(files, scratch, MAX_ROW)
    for file in reader.files:
        rows = sum(1 for _ in reader.index(file))
        yield from reader.rows(file, 0, 0, rows)
