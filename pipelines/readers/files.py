"""A dataset as it lies on this machine: the files that an entry reads, the reader for them, and their checksums."""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipelines.catalogue import Source
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.layouts import (
    ClassFolders,
    Layout,
    ParquetImages,
    UrlTable,
    WebDataset,
    left_in,
    matching,
    patterns,
    warn_of_idle,
)
from pipelines.readers.class_folders import ClassFolderReader
from pipelines.readers.parquet_images import ParquetImageReader
from pipelines.readers.records import ArchivedReader, RecordReader
from pipelines.readers.row import Reader
from pipelines.readers.webdataset import WebDatasetReader
from pipelines.storage import file_sha256

CHECKSUMS = "checksums.sqlite"
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")
PATIENCE = 60.0  # seconds to wait for another process that writes the checksums
SCRATCH = "HARMON_SCRATCH"


@dataclass(frozen=True)
class NativeFiles:
    """The files of one source below `root`, and the layout that fits them."""

    source: Source
    root: Path
    layout: Layout
    names: tuple[str, ...]
    """Every file that the layout reads, images included: names relative to the root, sorted."""
    revision: str
    """Commit of the hub, or `local`."""
    only: tuple[str, ...] = ()
    """Patterns that files with rows were narrowed to."""

    @property
    def tables(self) -> list[str]:
        """The files that hold rows, in order."""
        return [] if isinstance(self.layout, ClassFolders) else matching(self.names, self.layout.files)

    def described(self) -> dict[str, Any]:
        """What a step that reads these files says of them: part of its key. Each file is hashed, once."""
        layout = self.layout.model_dump(mode="json")
        return {
            **asked_of(self.source, self.only),
            "layout": layout,
            "revision": self.revision,
            "files": self.checksums(),
        }

    def checksums(self) -> list[list[str]]:
        """Name and SHA-256 of every table and archive, then one digest of the files that lie loose, of which there may
        be millions: what a step's key says that it read."""
        tables, loose, many = set(self.tables), hashlib.sha256(), 0
        told = []
        with Checksums() as known:
            for name in self.names:
                digest = known.of(self.root / name)
                if name in tables or name.endswith(ARCHIVES):
                    told.append([name, digest])
                else:
                    loose.update(f"{digest} {name}\n".encode(errors="surrogateescape"))
                    many += 1
        return [*told, [f"{many} loose files", loose.hexdigest()]] if many else told


def asked_of(source: Source, only: Sequence[str]) -> dict[str, Any]:
    """What is known of a reading before its files are: the source, its rules, and which files are wanted."""
    reading = source.model_dump(mode="json", include={"task", "odd", "question", "captions", "override"})
    return {"source": source.name, "terms": source.terms, "hub": source.hub, "reading": reading, "only": list(only)}


def local_files(source: Source, root: Path, revision: str = "local", only: Sequence[str] = ()) -> NativeFiles:
    """The files below a folder that is laid out as the publisher's; `only` leaves out rows whose file matches none.

    Raises:
        ConfigurationError: the source has no layout, or `only` matches nothing.
        HarmonError: the folder is absent, or has the files of none of the source's layouts.
    """
    if not source.layouts:
        raise ConfigurationError(
            f"{source.name} is made by a recipe's own web and not read from files; use `harmon run`."
        )
    if not root.is_dir():
        raise HarmonError(f"there is no folder {root} to read {source.name} from; name the one that holds its files")
    there = sorted(_walk(root))
    for layout in source.layouts:
        names = left_in(there, layout)
        rows = matching(names, patterns(layout) if isinstance(layout, ClassFolders) else layout.files)
        if not rows:
            continue
        if revision == "local":  # else the hub's list was looked at, and what is left out was never fetched
            warn_of_idle(there, layout, str(root))
        if only:
            left = matching(rows, only)
            if not left:
                raise ConfigurationError(
                    f"--files {' '.join(only)} matches none of {len(rows)} files, such as {rows[0]}."
                )
            dropped = set(rows) - set(left)
            names = [name for name in names if name not in dropped]
        wanted = matching(names, _reaching(patterns(layout), root))
        return NativeFiles(source, root, layout, tuple(wanted), revision, tuple(only))
    globs = " or ".join(", ".join(patterns(layout)) for layout in source.layouts)
    out = [glob for layout in source.layouts for glob in layout.without]
    raise HarmonError(
        f"{root} has no files of {source.name}: it is read from {globs}"
        + (f", without {', '.join(out)}" if out else "")
    )


def open_reader(files: NativeFiles, scratch: Path, cap: int) -> Reader:
    """The reader of images for these files; `cap`: bytes of one image. Raises HarmonError as the readers do."""
    root, layout, tables, names = files.root, files.layout, files.tables, files.names
    if isinstance(layout, ParquetImages):
        return ParquetImageReader(root, tables, layout)
    if isinstance(layout, WebDataset):
        return WebDatasetReader(root, tables, layout, cap)
    if isinstance(layout, ClassFolders):
        return ClassFolderReader(root, names, layout, cap)
    if isinstance(layout, UrlTable):
        raise HarmonError(f"{files.source.name} has links and no images; its links are downloaded")
    read = ArchivedReader if layout.archives else RecordReader
    return read(root, tables, names, layout, scratch, cap)


def _walk(root: Path) -> list[str]:
    """Names of all regular files below `root`; hidden ones and the hub's own bookkeeping are left out."""
    found: list[str] = []
    seen: set[Path] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if (real := Path(folder).resolve()) in seen:  # a link to a folder above
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        base = Path(folder).relative_to(root).as_posix()
        found += [name if base == "." else f"{base}/{name}" for name in files if not name.startswith(".")]
    return found


def _reaching(globs: Sequence[str], root: Path) -> list[str]:
    """Globs, with what lies below those that name a folder."""
    return [*globs, *(f"{glob}/**/*" for glob in globs if "*" not in glob and (root / glob).is_dir())]


def scratch_folder() -> Path:
    """Where this machine keeps what no dataset needs: $HARMON_SCRATCH, else below the user's cache."""
    folder = Path(os.environ.get(SCRATCH) or "~/.cache/harmon/scratch").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Checksums:
    """SHA-256 of local files, remembered on disk by path, size and time of change: a terabyte is not hashed twice."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(scratch_folder() / CHECKSUMS, timeout=PATIENCE, isolation_level=None)

    def __enter__(self) -> Self:
        self._db.execute("PRAGMA synchronous=OFF")  # what a crash takes away is hashed again
        self._db.execute("CREATE TABLE IF NOT EXISTS file (what BLOB PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def of(self, path: Path) -> str:
        """The file's SHA-256; it is read if it is new or has changed."""
        stat = path.stat()
        what = os.fsencode(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}")
        if (known := self._db.execute("SELECT sha256 FROM file WHERE what=?", (what,)).fetchone()) is not None:
            return str(known[0])
        digest = file_sha256(path)
        self._db.execute("INSERT OR REPLACE INTO file VALUES (?,?)", (what, digest))
        return digest
