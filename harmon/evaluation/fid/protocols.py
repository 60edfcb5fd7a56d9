"""FID as papers report it on 30,000 captions of COCO and on MJHQ-30K. Neither the paper nor its code names a protocol.

    mscoco-30k-all       reference: all 40,504 pictures of val2014; both sides: middle square, Lanczos to 256 px, as
                         GigaGAN's script, which Janus used (EVALS.md 3.3)
    mscoco-30k-captions  the same, but the reference is the 30,000 pictures that the captions are of
    mjhq-30k-1024        both sides resized to 1024 px, bicubic: the size that the data's card names (EVALS.md 3.2)
    mjhq-30k-512         both sides at 512 px, the size that Harmon draws at

Fewer pictures make a FID larger, so a part (`partial`) compares with nothing, and FIDs by category (3,000 pictures)
compare with other FIDs by category alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harmon.evaluation.fid.preparation import Preparation
from harmon.evaluation.files.images import Images
from harmon.evaluation.question import Picture, Prompt
from harmon.evaluation.scorers.counts import COCO_VAL2014, FID_IMAGES, require
from pipelines.errors import ConfigurationError, HarmonError


@dataclass(frozen=True)
class Protocol:
    """One way to measure FID on a benchmark."""

    name: str
    benchmark: str
    preparation: Preparation
    reference: Literal["captions", "val2014"]
    """The pictures of the prompts, or all of COCO val2014."""
    by: str | None = None
    """Fact of the prompts by whose values it is measured again."""


_GIGAGAN = Preparation(256, "lanczos", "centre-crop")
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("mscoco-30k-all", "mscoco-30k", _GIGAGAN, "val2014"),
        Protocol("mscoco-30k-captions", "mscoco-30k", _GIGAGAN, "captions"),
        Protocol("mjhq-30k-512", "mjhq-30k", Preparation(512), "captions", by="category"),
        Protocol("mjhq-30k-1024", "mjhq-30k", Preparation(1024), "captions", by="category"),
    )
}


def protocols_of(benchmark: str) -> list[Protocol]:
    """The protocols of a benchmark, the one to report first. Raises ConfigurationError where it has none."""
    found = [protocol for protocol in PROTOCOLS.values() if protocol.benchmark == benchmark]
    if not found:
        known = ", ".join(sorted({protocol.benchmark for protocol in PROTOCOLS.values()}))
        raise ConfigurationError(f"FID is not measured on {benchmark}; it is on {known}.")
    return found


def references(
    protocol: Protocol, prompts: Sequence[Prompt], folder: Path, *, partial: bool = False
) -> list[tuple[str, Picture]]:
    """The real pictures of a protocol, each with the value of its fact `by` (empty where there is none).

    `prompts` come from `read_prompts(..., references=True)`, `folder` is where that read them.

    Raises:
        HarmonError: not all of them are there, and `partial` does not say so.
    """
    if protocol.reference == "val2014":
        found = [("", picture) for picture in coco_val2014(folder)]
        require(f"{protocol.name}, reference pictures", len(found), COCO_VAL2014, partial)
        return found
    if without := next((prompt for prompt in prompts if not prompt.pictures), None):
        raise HarmonError(f"{without.benchmark} {without.id} has no real picture; read the prompts with references.")
    require(f"{protocol.name}, reference pictures", len(prompts), FID_IMAGES, partial)
    return [(prompt.facts[protocol.by] if protocol.by else "", prompt.pictures[0]) for prompt in prompts]


def coco_val2014(folder: Path) -> list[Picture]:
    """All pictures of COCO val2014 below a benchmark's folder, in the order of their names."""
    return list(Images(folder, ("val2014", "images/val2014", "val2014.zip")).all("COCO_val2014_*.jpg"))
