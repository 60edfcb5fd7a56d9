"""Pictures that lie beside a benchmark's questions: in a folder, or in a zip archive as it was fetched.

Names come from strangers: one that leaves its folder, a link out of it, and a member that says or holds more bytes than
any picture are errors.
"""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from pipelines.errors import ConfigurationError, HarmonError
from pipelines.readers.paths import BadPath, clean_path

MAX_PICTURE = 48 << 20  # bytes
OPEN_ARCHIVES = 4


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own."""

    where: str
    path: Path

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as stream:
                data = stream.read(MAX_PICTURE + 1)
        except OSError as error:
            raise HarmonError(f"{self.where}: {self.path} cannot be read ({error.strerror}).") from None
        return _within(data, self.where, str(self.path))


@dataclass(frozen=True)
class ZippedPicture:
    """A picture that is a member of a zip archive."""

    where: str
    archive: Path
    member: str

    def read(self) -> bytes:
        archive = _opened(self.archive)
        try:
            if archive.getinfo(self.member).file_size > MAX_PICTURE:
                raise HarmonError(f"{self.where}: {self.member} says more than {MAX_PICTURE:,} bytes; fetch it anew.")
            with archive.open(self.member) as stream:
                data = stream.read(MAX_PICTURE + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
            raise HarmonError(f"{self.where}: {self.member} in {self.archive} cannot be read ({error}).") from None
        return _within(data, self.where, self.member)


class Images:
    """Where the pictures of a benchmark are looked for: the first of `places` that there is below `root`.

    A place is a folder or a zip archive. In an archive names may stand below a folder of the archive's own name.
    """

    def __init__(self, root: Path, places: Sequence[str]) -> None:
        there = [root / place for place in places if (root / place).exists()]
        if not there:
            raise ConfigurationError(
                f"{root} has none of {', '.join(places)}, where the pictures are; docs/benchmarks-data.md says what to "
                "fetch."
            )
        self.place = there[0]
        self._base = self.place.resolve()

    def find(self, where: str, *names: str) -> FilePicture | ZippedPicture:
        """The picture of the first of these names that there is. Raises HarmonError where there is none, or a name
        leads out of the place."""
        for name in names:
            try:
                clean = clean_path(name)
            except BadPath as error:
                raise HarmonError(f"{where}: {error}; that file is not to be trusted.") from None
            found = self._file(clean, where) if self.place.is_dir() else self._member(clean, where)
            if found is not None:
                return found
        raise HarmonError(f"{where}: its picture {' or '.join(names)} is not in {self.place}; fetch that anew.")

    def all(self, pattern: str) -> Iterator[FilePicture | ZippedPicture]:
        """Every picture whose file is named like `pattern`, in the order of their names."""
        if self.place.is_dir():
            names = sorted(path.name for path in self._base.iterdir() if fnmatchcase(path.name, pattern))
        else:
            members = (name.rpartition("/")[2] for name in _opened(self.place).NameToInfo)
            names = sorted({name for name in members if fnmatchcase(name, pattern)})
        for name in names:
            yield self.find(str(self.place), name)

    def _file(self, name: str, where: str) -> FilePicture | None:
        path = self._base / name
        if not path.is_file():
            return None
        if not path.resolve().is_relative_to(self._base):
            raise HarmonError(f"{where}: {name} is a link out of {self.place}; put the picture itself there.")
        return FilePicture(where, path)

    def _member(self, name: str, where: str) -> ZippedPicture | None:
        known = _opened(self.place).NameToInfo
        for member in (name, f"{self.place.stem}/{name}"):
            if member in known:
                return ZippedPicture(where, self.place, member)
        return None


@lru_cache(maxsize=OPEN_ARCHIVES)
def _opened(path: Path) -> zipfile.ZipFile:
    """An archive, opened once: listing one of 40,000 members takes a second."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise HarmonError(f"{path} cannot be read as a zip archive ({error}); fetch it anew.") from None


def _within(data: bytes, where: str, name: str) -> bytes:
    if len(data) > MAX_PICTURE:
        raise HarmonError(f"{where}: {name} has more than {MAX_PICTURE:,} bytes, which no picture of a benchmark has.")
    if not data:
        raise HarmonError(f"{where}: {name} is empty; fetch that file anew.")
    return data
