"""The demo's real photographs: files of installed packages, with captions written for this project."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines.errors import HarmonError
from pipelines.settings import Settings, parse, read_yaml

LIST = Path(__file__).with_name("photographs.yaml")


class Entry(Settings):
    """One photograph as the YAML file lists it."""

    name: str
    """Its row id in the list of links."""
    file: str
    """Package, folders and file name, as in `skimage/data/camera.png`."""
    licence: str
    """What the package says about its use."""
    caption: str
    """One sentence about what is to be seen."""


class Entries(Settings):
    """The YAML file."""

    photographs: tuple[Entry, ...]


@dataclass(frozen=True)
class Photograph:
    """One photograph as it lies on this machine."""

    name: str
    path: Path
    licence: str
    caption: str


def photographs() -> tuple[Photograph, ...]:
    """All photographs, in the order of the YAML file, each checked to be there.

    Raises:
        HarmonError: a package is not installed, or no longer carries a file.
    """
    listed = parse(Entries, read_yaml(LIST), str(LIST)).photographs
    return tuple(Photograph(e.name, _located(e.file), e.licence, e.caption) for e in listed)


def _located(file: str) -> Path:
    package, _, inside = file.partition("/")
    path = _folder(package) / inside
    if not path.is_file():
        raise HarmonError(f"the package {package} has no file {inside}; install the versions that `make` pins")
    return path


@cache
def _folder(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise HarmonError(f"the package {package}, which carries photographs of the demo, is not installed; run `make`")
    return Path(spec.submodule_search_locations[0])
