"""The images that records name by path: in zips, tars and folders, found by an index on disk.

The index (SQLite) holds each member's name and place, so that memory does not grow with the number of images, but for
a zip's own directory while that zip is indexed (about half a kilobyte a member). No image is ever unpacked to a file,
so no member can be written anywhere.
"""

import contextlib
import logging
import sqlite3
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import HarmonError
from pipelines.layouts import Images, matching
from pipelines.readers.paths import BadPath, clean_path

OPEN_FILES = 32  # archives kept open at a time
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE.TXT of PKWARE, 4.3.7

log = logging.getLogger(__name__)


class NoImage(Exception):
    """Why a path gives no bytes: `image_missing`, `bad_path`, `too_large` or `bad_archive`, and what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ImageStore:
    """Images by the path that records use; `found` counts members by archive."""

    def __init__(self, root: Path, names: Sequence[str], images: Sequence[Images], scratch: Path, cap: int) -> None:
        """Index every archive of `images` among `names` (files below `root`) into a new database in `scratch`.

        `cap`: bytes of one image. Raises HarmonError for a damaged archive.
        """
        self._root = root
        self._cap = cap
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._folders: list[tuple[str, tuple[str, ...]]] = []
        self._layout = images
        self._db = sqlite3.connect(scratch / "images.sqlite", isolation_level=None)
        self._db.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;"
            "CREATE TABLE member (path TEXT PRIMARY KEY, archive TEXT, at INTEGER, packed INTEGER, size INTEGER,"
            " method INTEGER, crc INTEGER) WITHOUT ROWID;"
        )
        self.found: dict[str, int] = {}
        self._named: set[str] = set()
        for one in images:
            for archive in matching(names, one.files):
                self._add(archive, one.at)
            for glob in one.files:
                if (root / glob).is_dir():
                    self._folders.append((glob, one.at))
        self._db.execute("COMMIT")

    def __bool__(self) -> bool:
        return bool(self.found or self._folders)

    def close(self) -> None:
        """Let the index and every archive go."""
        self._db.close()
        for stream in self._open.values():
            stream.close()

    def _add(self, archive: str, at: Sequence[str]) -> None:
        path = self._root / archive
        read = _zip_members(path) if path.suffix == ".zip" else _tar_members(path)
        prefixes = [prefix.replace("{stem}", path.name.partition(".")[0]) for prefix in at]
        before = self._db.total_changes
        try:
            self._db.executemany(
                "INSERT OR IGNORE INTO member VALUES (?,?,?,?,?,?,?)",
                ((prefix + name, archive, *place) for name, *place in read for prefix in prefixes),
            )
        except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
            raise HarmonError(f"{path} is a damaged archive ({error}); fetch it anew") from None
        self.found[archive] = (self._db.total_changes - before) // len(prefixes)

    def read(self, path: str) -> bytes:
        """The bytes of an image. Raises NoImage."""
        try:
            name = clean_path(path)
        except BadPath as error:
            raise NoImage("bad_path", str(error)) from None
        row = self._db.execute("SELECT archive, at, packed, size, method, crc FROM member WHERE path=?", (name,))
        if (place := row.fetchone()) is not None:
            return self._member(name, *place)
        return self._file(name)

    def _file(self, name: str) -> bytes:
        if (path := self._in_folder(name)) is None:
            raise NoImage("image_missing", f"{name} is in no archive or folder of images")
        if path.stat().st_size > self._cap:
            raise NoImage("too_large", f"more than {self._cap} bytes")
        return path.read_bytes()

    def _in_folder(self, name: str) -> Path | None:
        """The file of that name in one of the folders. Raises NoImage where a link leads out of it."""
        for folder, prefixes in self._folders:
            for prefix in prefixes:
                if not name.startswith(prefix):
                    continue
                base = (self._root / folder).resolve()
                path = (base / name.removeprefix(prefix)).resolve()
                if not path.is_relative_to(base):
                    raise NoImage("bad_path", f"{name} leads out of the folder {folder}")
                if path.is_file():
                    return path
        return None

    def _member(self, name: str, archive: str, at: int, packed: int, size: int, method: int, crc: int | None) -> bytes:
        if size > self._cap or packed > self._cap:
            raise NoImage("too_large", f"{size} bytes, more than {self._cap}")
        stream = self._stream(archive)
        stream.seek(at)
        if crc is None:  # a tar: `at` is where the data begin
            data = stream.read(size)
        else:
            header = stream.read(LOCAL_HEADER.size)
            if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\3\4":
                raise NoImage("bad_archive", f"{archive} has no header of {name}")
            *_, name_length, extra_length = LOCAL_HEADER.unpack(header)
            stream.seek(name_length + extra_length, 1)
            data = stream.read(packed)
            try:  # one byte more than announced is asked for, so that a bomb shows
                data = data if method == STORED else zlib.decompressobj(-15).decompress(data, size + 1)
            except zlib.error as error:
                raise NoImage("bad_archive", f"{name} in {archive}: {error}") from None
        if len(data) != size or (crc is not None and zlib.crc32(data) != crc):
            raise NoImage("bad_archive", f"{name} in {archive} is not what its archive announces")
        return data

    def _stream(self, archive: str) -> BinaryIO:
        if archive in self._open:
            self._open.move_to_end(archive)
            return self._open[archive]
        if len(self._open) >= OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[archive] = (self._root / archive).open("rb")
        return self._open[archive]

    def note(self, path: str) -> None:
        """Take note that a record names this image."""
        with contextlib.suppress(BadPath, NoImage):
            name = clean_path(path)
            row = self._db.execute("SELECT archive FROM member WHERE path=?", (name,)).fetchone()
            if row is not None:
                self._named.add(row[0])
            elif not self._named and (place := self._in_folder(name)):
                self._named.add(str(place))

    def unnamed(self) -> tuple[str, str, int] | None:
        """Archives of which no record names any image, though the entry says that they hold them: pattern, a member
        as it would be named, and the number of its group. Other archives of a group may be more than is needed."""
        for number, one in enumerate(self._layout):
            archives = [archive for archive in self.found if matching([archive], one.files)]
            if archives and self._named.isdisjoint(archives):
                query = "SELECT path FROM member WHERE archive=? LIMIT 1"
                row = self._db.execute(query, (archives[0],)).fetchone()
                return archives[0], row[0] if row else "nothing", number
        if not self._named and self._folders:
            folder = self._folders[0][0]
            number = next(number for number, one in enumerate(self._layout) if folder in one.files)
            there = next((p for p in (self._root / folder).rglob("*") if p.is_file()), None)
            return folder, there.relative_to(self._root).as_posix() if there else "nothing", number
        return None


Member = tuple[str, int, int, int, int, int | None]


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            link = stat.S_ISLNK(info.external_attr >> 16)
            if info.is_dir() or link or info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                if not info.is_dir():
                    log.warning(
                        "%s: %r is a link, encrypted or packed in a rare way; it is left out", path, info.filename
                    )
                continue
            name = _clean(info.filename, path)
            if name is not None:
                yield name, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if info.isfile() and (name := _clean(info.name, path)) is not None:
                yield name, info.offset_data, info.size, info.size, STORED, None


def _clean(name: str, path: Path) -> str | None:
    try:
        return clean_path(name)
    except BadPath:
        log.warning("%s: the member %r would leave its folder; it is left out", path, name[:200])
        return None
