"""The catalogue: one YAML file for each source of data, with its terms and what the recipe does with it."""

from pathlib import Path
from typing import Literal

from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, nearest, parse, read_yaml

FOLDER = Path(__file__).with_name("catalog")

Terms = Literal["open", "open-captions", "non-commercial", "agreement", "model-output"]
"""open: pictures and captions may be passed on; open-captions: the pictures stay with their hosts; agreement:
terms must be accepted first; model-output: captions under the terms of the service whose model wrote them."""


class Captions(Settings):
    """The captions that a source comes with."""

    kind: Literal["class-name", "short", "dense"]
    author: str
    """Who or what wrote them."""
    rewrite: bool
    """Whether the recipe rewrites them before they are used to generate pictures."""


class Source(Settings):
    """One source of data."""

    name: str
    """The name that keys, datasets and recipes use; equal to the file's name."""
    title: str
    licence: str
    terms: Terms
    stages: tuple[Literal[1, 2, 3], ...]
    """Stages of training that use it."""
    role: str
    """What it does in the recipe, and which dataset of the paper it stands for."""
    captions: Captions


def names(folder: Path = FOLDER) -> list[str]:
    """Names of all sources, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def source(name: str, folder: Path = FOLDER) -> Source:
    """The catalogue entry of this name.

    Raises:
        ConfigurationError: there is no such entry (the nearest name is told), or its file is wrong.
    """
    known = names(folder)
    if name not in known:
        raise ConfigurationError(f"the catalogue has no source '{name}'; {nearest(name, known)}.")
    path = folder / f"{name}.yaml"
    entry = parse(Source, read_yaml(path), str(path))
    if entry.name != name:
        raise ConfigurationError(f"{path} describes '{entry.name}'; file and entry must have one name.")
    return entry
