"""The catalogue: one YAML file for each source of data, with its terms, how it is read, and what the recipe does
with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.errors import ConfigurationError
from pipelines.layouts import Globs, Layout
from pipelines.settings import Settings, nearest, parse, read_yaml, with_override

UNSTATED = "yours to state"  # licence of an entry that someone has still to make their own
BINDING = ("licence", "terms", "restrictions", "agreement")  # fields that say what binds a source
FOLDER = Path(__file__).with_name("catalog")

Terms = Literal["open", "open-captions", "non-commercial", "agreement", "model-output", "own"]
"""open: pictures and captions may be passed on; open-captions: the pictures stay with their hosts; agreement:
terms must be accepted first; model-output: captions under the terms of the service whose model wrote them; own:
the user's, whose terms are the user's to state."""

Restriction = Literal[
    "gated", "agreement", "non-commercial", "model-output", "no-redistribution", "share-alike", "personal-data"
]
"""gated: the publisher wants to know who takes it; no-redistribution: images may not be passed on."""


CaptionKind = Literal["class-name", "short", "dense", "questions", "none"]


class CaptionsOfPart(Settings):
    """Captions of a part of a source that are of another kind than the rest."""

    images: Globs
    """Patterns of the paths of its images, as rows write them."""
    kind: CaptionKind
    author: str
    """Who or what wrote them."""


class Captions(Settings):
    """The captions that a source comes with."""

    kind: CaptionKind
    author: str
    """Who or what wrote them."""
    parts: tuple[CaptionsOfPart, ...] = ()
    """Parts whose captions are others; the first that matches counts."""
    rewrite: bool
    """Whether the recipe rewrites them before they are used to generate pictures."""
    from_answer: bool = False
    """The caption is the first answer of the conversation."""
    clean: Literal["none", "preamble", "midjourney"] = "none"
    """preamble: "This image displays:" is cut off (PixelProse); midjourney: flags, links and <tokens> are."""
    clean_only: tuple[str, ...] = ()
    """Fields whose texts are cleaned, where others may be the caption too; empty: all."""


class OddRows(Settings):
    """What becomes of rows that are not one image with one text."""

    several_images: Literal["reject", "first"] = "reject"
    """`first` keeps the first image; such a row's text may speak of the others."""
    text_only: Literal["keep", "reject"] = "keep"
    """A conversation without an image becomes a row of task text."""
    image_only: Literal["keep", "reject"] = "reject"
    """`keep` where captions are written later; the caption is then null."""


class Rows(Settings):
    """How many rows the publisher speaks of."""

    count: Annotated[int, Field(ge=1)]
    confirmed: bool
    """Whether the publisher's own page says so."""


class Override(Settings):
    """Captions that belong to rows of other sources."""

    of: tuple[str, ...]
    """Sources whose rows they describe."""
    by: Literal["url", "member", "tar-member"]
    """What both have: the link; the key of a member, in tars of any names; or its tar's name and its key."""


class Source(Settings):
    """One source of data."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,59}$")
    """The name that keys, datasets and recipes use; equal to the file's name."""
    title: str
    licence: str
    terms: Terms
    """The class that each of its rows carries."""
    restrictions: tuple[Restriction, ...] = ()
    """Everything that binds whoever uses it."""
    agreement: str | None = None
    """What has to be agreed to, and where it stands."""
    stages: tuple[Literal[1, 2, 3], ...]
    """Stages of training that use it."""
    role: str
    """What it does in the recipe, and which dataset of the paper it stands for."""
    captions: Captions
    task: Literal["image2text", "text2image"] = "text2image"
    """What a row with an image is for."""
    hub: str | None = None
    """Dataset on the Hugging Face hub."""
    revision: str = "main"
    """What the first download asks for; the commit that it finds is recorded and used from then on."""
    beside: tuple[str, ...] = ()
    """What has to be fetched from elsewhere by hand, and where it goes in the dataset's folder."""
    rows: Rows | None = None
    bytes: int | None = None
    """Bytes of the files to read, links not followed."""
    layouts: tuple[Layout, ...] = ()
    """How it is read; of several, the first whose files are there."""
    odd: OddRows = OddRows()
    question: str | None = None
    """Stands in for a question that is empty apart from the image."""
    override: Override | None = None
    """The entry holds captions for rows of other sources, and no rows of its own."""
    traps: tuple[str, ...] = ()
    """What is known to go wrong."""
    unconfirmed: tuple[str, ...] = ()
    """What the entry assumes and nobody has checked against a real file."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = {"non-commercial", "agreement", "model-output"} & {self.terms}
        if missing := wanted - set(self.restrictions):
            raise ValueError(f"terms are {missing.pop()}, so restrictions must list it too")
        if self.needs_acceptance and not self.agreement:
            raise ValueError("agreement must say what has to be accepted and where it stands")
        return self

    @property
    def needs_acceptance(self) -> bool:
        """Whether a download is refused until someone has accepted its terms."""
        return bool({"gated", "agreement", "non-commercial"} & set(self.restrictions))


def names(folder: Path = FOLDER) -> list[str]:
    """Names of all sources, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def source(name: str, folder: Path = FOLDER, settings: Sequence[str] = ()) -> Source:
    """The catalogue entry of this name; `settings` are `path.to.key=value` that replace what it says.

    Raises:
        ConfigurationError: there is no such entry (the nearest name is told), its file is wrong, or a setting would
            change what binds it.
    """
    known = names(folder)
    if name not in known:
        raise ConfigurationError(f"the catalogue has no source '{name}'; {nearest(name, known)}.")
    found = entry(folder / f"{name}.yaml", settings)
    bound = entry(folder / f"{name}.yaml") if settings else found
    if bound.terms != "own" and any(getattr(found, field) != getattr(bound, field) for field in BINDING):
        raise ConfigurationError(
            f"{', '.join(BINDING)} of {name} are its publisher's to state, and no setting changes them; for data under "
            "other terms write an entry of your own."
        )
    return found


def without(source: Source, files: Sequence[str]) -> Source:
    """`source`, reading none of the files that match these patterns; that is part of what is computed from it."""
    layouts = [one.model_copy(update={"without": (*one.without, *files)}) for one in source.layouts]
    return source.model_copy(update={"layouts": tuple(layouts)})


def entry(path: Path, settings: Sequence[str] = ()) -> Source:
    """The entry that a file holds, of the catalogue or a user's own. Raises ConfigurationError as `source` does."""
    data: dict[str, Any] = read_yaml(path)
    for setting in settings:
        with_override(data, setting)
    read = parse(Source, data, str(path))
    if read.name != path.stem:
        raise ConfigurationError(f"{path} describes '{read.name}'; file and entry must have one name.")
    return read
