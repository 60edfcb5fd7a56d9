"""JSON arrays and JSON lines whose images lie beside them: in zips, tars, folders, or in gzipped tars."""

import logging
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import HarmonError
from pipelines.layouts import Records, glob_pattern
from pipelines.readers.image_store import ImageStore, NoImage
from pipelines.readers.json_stream import Found, read_record, read_records
from pipelines.readers.paths import BadPath, clean_path
from pipelines.readers.row import Mark, Native, Presence, Record, named, text_of, value_of
from pipelines.readers.tar_samples import members

MAX_UNPACKED = 64 << 30  # bytes of records that a gzipped tar may hold; JourneyDB's are some 10 GB

log = logging.getLogger(__name__)


class RecordReader:
    """Records in file order, each with its image from the store; a cursor is a byte offset."""

    def __init__(
        self, root: Path, files: Sequence[str], names: Sequence[str], layout: Records, scratch: Path, cap: int
    ) -> None:
        """`names`: all files of the dataset's folder; the images among them are indexed below `scratch`."""
        self.files = tuple(files)
        self._root = root
        self._fields = layout.fields
        self._scratch = scratch
        self._store = ImageStore(root, names, layout.images, scratch, cap)
        if layout.images and not self._store:
            globs = ", ".join(glob for images in layout.images for glob in images.files)
            raise HarmonError(
                f"no images of {', '.join(files)} are below {root}: put them at {globs}, as many as you have"
            )

    def index(self, file: str) -> Iterator[Mark]:
        presence = Presence(str(self._root / file), self._fields.named)
        first = None
        for number, one in enumerate(read_records(self._path(file))):
            if one.problem is None:
                presence.look(one.value)
                if paths := image_paths(one.value, self._fields.image):
                    first = first or paths[0]
                    self._store.note(paths[0])
            yield Mark(one.offset, _row_id(one, self._fields.row_id) or named(file, number))
        presence.check()
        if first is not None and file == self.files[-1] and (unnamed := self._store.unnamed()):
            raise HarmonError(
                f"{self._root / file} names none of the images in {unnamed[0]}, such as {unnamed[1]!r}: its rows name "
                f"{first!r} and others; say where those images belong with "
                f"--set layouts.0.images.{unnamed[2]}.at=[PREFIX]"
            )

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        for number, one in enumerate(read_records(self._path(file), cursor), start=first):
            yield self._native(named(file, number), one)
            if number + 1 == first + count:
                return

    def _native(self, name: str, one: Found) -> Native:
        if one.problem is not None:
            return Native(name, {}, problem=("bad_record", one.problem))
        paths = image_paths(one.value, self._fields.image)
        if not paths:
            return Native(name, one.value)
        try:
            return Native(name, one.value, len(paths), self._store.read(paths[0]))
        except NoImage as problem:
            return Native(name, one.value, len(paths), problem=(problem.reason, problem.detail))

    def _path(self, file: str) -> Path:
        return unpacked(self._root / file, self._scratch)


class Place(NamedTuple):
    """Where a record stands: number of its file, of its row, and its bytes."""

    source: int
    number: int
    at: int
    size: int


class ArchivedReader:
    """Records whose images lie in gzipped tars, which cannot be sought: each is read once from front to back, and its
    rows come in that order, those whose image is not in it last. A cursor is a row's number within its archive."""

    def __init__(
        self, root: Path, files: Sequence[str], names: Sequence[str], layout: Records, scratch: Path, cap: int
    ) -> None:
        """Sorts the records by archive into a database below `scratch`."""
        assert layout.archives is not None
        self._root = root
        self._fields = layout.fields
        self._cap = cap
        self._template = layout.archives
        self._names = tuple(files)
        self._sources = [unpacked(root / file, scratch) for file in files]
        self._there = set(names)
        self._db = sqlite3.connect(scratch / "records.sqlite", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE record (archive TEXT, image TEXT, source INTEGER, number INTEGER, at INTEGER, size INTEGER);"
        )
        for number, file in enumerate(files):
            presence = Presence(str(root / file), self._fields.named)
            self._db.executemany("INSERT INTO record VALUES (?,?,?,?,?,?)", self._sorted(number, presence))
            presence.check()
        self._db.execute("CREATE INDEX by_archive ON record (archive)")
        self._db.execute("COMMIT")
        self.files = tuple(row[0] for row in self._db.execute("SELECT DISTINCT archive FROM record ORDER BY archive"))
        absent = [file for file in self.files if file not in self._there]
        if len(absent) == len(self.files):
            pattern = glob_pattern(self._template.replace("{folder}", "*"))
            there = [name for name in names if pattern.fullmatch(name)]
            raise HarmonError(f"the records of {root} want {absent[:3]}, and there are the archives {there[:3]}")
        if absent:
            log.warning("%d of %d archives are absent, first %s", len(absent), len(self.files), absent[0])

    def _sorted(self, number: int, presence: Presence) -> Iterator[tuple[str, str | None, int, int, int, int]]:
        for row, one in enumerate(read_records(self._sources[number])):
            if one.problem is None:
                presence.look(one.value)
            paths = image_paths(one.value, self._fields.image)
            try:
                name = clean_path(paths[0]) if paths else None
            except BadPath:
                name = None
            folder = name.partition("/")[0] if name else ""
            yield self._template.replace("{folder}", folder), name, number, row, one.offset, one.size

    def index(self, file: str) -> Iterator[Mark]:
        rows = self._db.execute("SELECT count(*) FROM record WHERE archive=?", (file,)).fetchone()[0]
        yield from (Mark(number, None) for number in range(rows))

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        stop = cursor + count
        for number, native in enumerate(self._all(file, range(cursor, stop)), start=1):
            if native is not None:
                yield native
            if number == stop:
                return

    def _all(self, file: str, wanted: range) -> Iterator[Native | None]:
        """Every row of an archive; None for those that are not wanted."""
        waiting: dict[str, list[Place]] = {}
        odd: list[Place] = []
        query = "SELECT image, source, number, at, size FROM record WHERE archive=? ORDER BY source, at"
        for image, *place in self._db.execute(query, (file,)):
            (waiting.setdefault(image, []) if image else odd).append(Place(*place))
        number = unnamed = 0
        there = file in self._there
        for member in members(self._root / file) if there else ():
            places = self._taken(waiting, member.name, file) if member.name is not None else None
            if places is None:
                unnamed += 1
                continue
            data = member.read() if member.size <= self._cap and number < wanted.stop else None
            problem = None if member.size <= self._cap else ("too_large", f"{member.size} bytes, more than {self._cap}")
            for place in places:
                yield self._native(place, data, problem) if number in wanted else None
                data, problem = None, ("duplicate_row_id", "an earlier record names this image")
                number += 1
        if unnamed:
            log.info("%s: %d images have no record and are left out", file, unnamed)
        missing = ("image_missing", f"it is not in {file}" if there else f"the archive {file} is absent")
        for place in sorted(place for places in waiting.values() for place in places):
            yield self._native(place, None, missing)
        for place in odd:
            yield self._native(place, None, ("bad_path", "it names no image below a folder"))

    def _taken(self, waiting: dict[str, list[Place]], name: str, file: str) -> list[Place] | None:
        """The records of an image, whose member is named 017/a.jpg or a.jpg."""
        folder = Path(file).name.partition(".")[0]
        return waiting.pop(name, None) or waiting.pop(f"{folder}/{name}", None)

    def _native(self, place: Place, data: bytes | None, problem: tuple[str, str] | None) -> Native:
        name = named(self._names[place.source], place.number)
        try:
            with self._sources[place.source].open("rb") as stream:
                record = read_record(stream, place.at, place.size)
        except (ValueError, RecursionError) as error:
            return Native(name, {}, problem=("bad_record", str(error)[:120]))
        return Native(name, record, 1, data, problem)


def image_paths(record: Record, names: Sequence[str]) -> list[str]:
    """The images that a record names: a path, a list of paths, or nothing."""
    value = value_of(record, tuple(names))
    values = value if isinstance(value, list) else [value]
    return [path for path in values if isinstance(path, str) and path]


def unpacked(path: Path, scratch: Path) -> Path:
    """`path`, or the one JSON file inside it where it is a gzipped tar, copied to `scratch` once."""
    if path.suffix not in {".tgz", ".gz"}:
        return path
    inside = [name for name in sorted(scratch.glob(f"{path.name}.*")) if name.suffix in {".json", ".jsonl"}]
    if inside:
        return inside[0]
    for member in members(path):
        suffix = Path(member.name or "").suffix
        if suffix in {".json", ".jsonl"}:
            if member.size > MAX_UNPACKED:
                raise HarmonError(
                    f"{path} unpacks to {member.size} bytes, more than {MAX_UNPACKED}; is it what it says?"
                )
            attempt, target = scratch / "unpacking", scratch / f"{path.name}{suffix}"
            with attempt.open("wb") as out:
                shutil.copyfileobj(member.stream(), out, 1 << 20)
            return attempt.rename(target)
    raise HarmonError(f"{path} holds no .json or .jsonl file; the entry expects the records in it")


def _row_id(one: Found, names: Sequence[str]) -> str | None:
    try:
        return text_of(one.value, tuple(names)) if names and one.problem is None else None
    except TypeError:
        return None
