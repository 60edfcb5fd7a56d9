"""Folders of images, one for each class."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.errors import HarmonError
from pipelines.layouts import ClassFolders, glob_pattern
from pipelines.readers.parquet_images import LABELS
from pipelines.readers.paths import is_image_name
from pipelines.readers.row import Mark, Native

SYNSETS = "LOC_synset_mapping.txt"  # beside the folders, as ImageNet's own development kit has it
MAX_TEXT = 1 << 20  # bytes of a caption beside an image
CLASS = "class"  # field of a record that names the class's folder


class _Unread(Exception):
    """Why a file gives no sample."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class ClassFolderReader:
    """Images sorted by folder and name; each is named by its path, which keeps the WordNet id of ImageNet."""

    def __init__(self, root: Path, names: Sequence[str], layout: ClassFolders, cap: int) -> None:
        self._root = root
        self._cap = cap
        patterns = [glob_pattern(folder) for folder in layout.folders]
        folders = {name.rpartition("/")[0] for name in names if name != SYNSETS}
        self.files = tuple(sorted(f for f in folders if any(pattern.fullmatch(f) for pattern in patterns)))
        self._names = wordnet_names(root) if layout.names == "wordnet" else {}
        if layout.names == "wordnet" and (unknown := [f for f in self.files if Path(f).name not in self._names]):
            raise HarmonError(
                f"{root / unknown[0]} is no class of WordNet's list: name class folders by WordNet id, put "
                f"{SYNSETS} into {root}, or set layouts.0.names=folder"
            )

    def index(self, file: str) -> Iterator[Mark]:
        yield from (Mark(number, f"{file}/{name}") for number, name in enumerate(self._images(file)))

    def rows(self, file: str, cursor: int, first: int, count: int) -> Iterator[Native]:
        for image in self._images(file)[cursor : cursor + count]:
            name = f"{file}/{image}".lstrip("/")
            try:
                record = {CLASS: Path(file).name, LABELS: self._names.get(Path(file).name)}
                record |= {"txt": self._beside(self._root / file / image)}
                yield Native(name, record, 1, self._read(self._root / file / image))
            except _Unread as problem:
                yield Native(name, {}, 1, problem=(problem.reason, problem.detail))

    def _beside(self, path: Path) -> str | None:
        """The caption that lies beside an image."""
        text = path.with_suffix(".txt")
        if not text.is_file():
            return None
        try:
            return text.read_text(encoding="utf-8").strip() if text.stat().st_size <= MAX_TEXT else None
        except UnicodeDecodeError:
            raise _Unread("bad_text", f"{text.name} is not UTF-8") from None

    def _read(self, path: Path) -> bytes:
        if path.is_symlink():
            raise _Unread("bad_path", "it is a link")
        if not is_image_name(path.name):
            raise _Unread("not_an_image", "its ending is not that of an image")
        if path.stat().st_size > self._cap:
            raise _Unread("too_large", f"more than {self._cap} bytes")
        return path.read_bytes()

    def _images(self, file: str) -> list[str]:
        """Every file of a folder but the captions beside images."""
        names = sorted(p.name for p in (self._root / file).iterdir() if not p.is_dir() and not p.name.startswith("."))
        stems = {Path(name).stem for name in names if is_image_name(name)}
        return [name for name in names if not (name.endswith(".txt") and Path(name).stem in stems)]


def wordnet_names(root: Path) -> dict[str, str]:
    """WordNet id to its words, "tench, Tinca tinca": from the development kit's list beside the folders, else from
    the list that the package timm carries. Raises HarmonError where neither is there."""
    own = root / SYNSETS
    if own.is_file():
        lines = own.read_text(encoding="utf-8").splitlines()
        return {wnid: words.strip() for wnid, _, words in (line.partition(" ") for line in lines if line.strip())}
    spec = importlib.util.find_spec("timm")  # not imported: it would bring torch
    for place in (spec.submodule_search_locations or ()) if spec else ():
        lemmas = Path(place) / "data" / "_info" / "imagenet_synset_to_lemma.txt"
        if lemmas.is_file():
            lines = lemmas.read_text(encoding="utf-8").splitlines()
            return {wnid: words.strip() for wnid, _, words in (line.partition("\t") for line in lines)}
    raise HarmonError(f"nothing says what WordNet ids mean: put ImageNet's {SYNSETS} into {root}")
