"""How a published dataset lies on disk: the forms that a catalogue entry may name, one reader for each.

Nothing is read here; `pipelines.readers` reads.
"""

import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from pipelines.settings import Settings

log = logging.getLogger(__name__)

Names = tuple[str, ...]
Globs = Annotated[tuple[str, ...], Field(min_length=1)]


class Fields(Settings):
    """Where the values of a row stand.

    Each takes several names: those that a file has are tried in order, and the first with a value wins, so that
    one entry reads old and new schemas. `a.b` is the field b of the mapping a. A file that has none of the names
    is refused, because the entry would be wrong about it.
    """

    row_id: Names = ()
    """What names the row for good; left out, the row is named file#number, and in a tar file#member."""
    image: Names = ()
    """Bytes in Parquet, a path elsewhere."""
    url: Names = ()
    caption: Names = ()
    """`txt` in a tar is the member KEY.txt."""
    conversations: Names = ()
    """List of turns, {from, value} or {role, content}."""
    label: Names = ()
    """Number of the row's class."""
    licence: Names = ()
    md5: Names = ()
    """Of the file behind a link; a file of another is rejected as `changed`."""

    @property
    def named(self) -> dict[str, Names]:
        """The fields that have names."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name))}


class Gate(Settings):
    """A row is taken only where a number is below a limit; where it is absent, the row stays out."""

    field: Names
    below: float


class _Layout(Settings):
    """What all forms have."""

    without: Names = ()
    """Patterns of files that are left out, as if they were not there: known to be bad, or damaged here."""


class ParquetImages(_Layout):
    """Parquet files with the bytes of the images in a column."""

    kind: Literal["parquet-images"]
    files: Globs
    fields: Fields
    class_name: Literal["first", "all", "random"] = "first"
    """Which synonym of a class becomes the caption, where the row has a label."""


class UrlTable(_Layout):
    """Parquet, CSV, TSV or JSONL of links; a text file has one link a line."""

    kind: Literal["urls"]
    files: Globs
    fields: Fields
    gates: tuple[Gate, ...] = ()
    """Rows that fail one are turned away before anything is fetched."""


class Images(Settings):
    """Where the images of records lie: zips, tars or folders."""

    files: Globs
    """Archives, or a folder (`coco/train2017`), below the dataset's folder."""
    at: Names = ("",)
    """What stands before a member's name to make the path that records use: `coco/` + `train2017/1.jpg`.
    `{stem}` is the archive's name without ending. Of several, the one that records use is taken."""


class Records(_Layout):
    """A JSON array or JSON lines that name their images by path."""

    kind: Literal["records"]
    files: Globs
    """.json, .jsonl, or a .tgz with one of them inside."""
    fields: Fields
    images: tuple[Images, ...] = ()
    archives: str | None = None
    """Pattern of the gzipped tars that hold the images, `data/train/imgs/{folder}.tgz`, where {folder} is the
    first folder of a record's path. They are read once from front to back, and rows come in that order."""


class WebDataset(_Layout):
    """Tars whose adjacent members KEY.jpg, KEY.json, KEY.txt are one sample."""

    kind: Literal["webdataset"]
    files: Globs
    fields: Fields


class ClassFolders(_Layout):
    """Folders of images. A text file beside an image (`a.txt` beside `a.jpg`) is its caption; without one the name of
    its folder is."""

    kind: Literal["class-folders"]
    folders: Globs
    """Pattern of the folders; an empty one is the dataset's folder itself."""
    class_name: Literal["first", "all", "random"] = "first"
    names: Literal["folder", "wordnet"] = "folder"
    """What the class is called: its folder's name, or the words of the WordNet id that is its name."""


Layout = Annotated[
    ParquetImages | UrlTable | Records | WebDataset | ClassFolders,
    Field(discriminator="kind"),
]


def patterns(layout: Layout) -> tuple[str, ...]:
    """Every pattern of files that a layout reads, relative to the dataset's folder."""
    if isinstance(layout, ClassFolders):
        return tuple(f"{folder}/*" if folder else "*" for folder in layout.folders)
    if not isinstance(layout, Records):
        return layout.files
    images = tuple(pattern for images in layout.images for pattern in images.files)
    return (*layout.files, *images, *([layout.archives.replace("{folder}", "*")] if layout.archives else []))


def left_in(names: Iterable[str], layout: Layout) -> list[str]:
    """The names that a layout does not leave out, in their order."""
    compiled = [glob_pattern(glob) for glob in layout.without]
    return [name for name in names if not any(pattern.fullmatch(name) for pattern in compiled)]


def warn_of_idle(names: Iterable[str], layout: Layout, where: str) -> None:
    """Log each pattern of a layout that was to leave something out and matches none of the files: a slip, perhaps."""
    names = list(names)
    for glob in layout.without:
        if not matching(names, [glob]):
            log.warning("'%s' leaves out nothing: no file of %s matches it", glob, where)


@lru_cache(maxsize=1024)
def glob_pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stop at a slash, `**/` is any number of folders; every other character is itself, brackets too."""
    parts = re.split(r"(\*\*/|\*|\?)", glob)
    mapped = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(mapped.get(part, re.escape(part)) for part in parts))


def matching(names: Iterable[str], globs: Iterable[str]) -> list[str]:
    """The names that one of the globs matches, sorted."""
    compiled = [glob_pattern(glob) for glob in globs]
    return sorted({name for name in names if any(pattern.fullmatch(name) for pattern in compiled)})
