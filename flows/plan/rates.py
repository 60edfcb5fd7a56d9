"""How long one unit of a step's work takes: assumed, with its reason, or learned from runs that were measured.

A learned rate of a step of the same name goes before one of the same kind (`download:scenes`, `download`), and that
before an assumed one. Rates are kept apart by where they hold: `cpu`, a run whose training is on the CPU of one
machine, counted as one worker; `cuda`, one GPU, or one machine without.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from flows.recipe import CHECKOUT
from harmon import flops
from harmon.model.autoencoder import KlConfig
from harmon.training.device import A100
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse

Where = Literal["cpu", "cuda"]
SHIPPED = CHECKOUT / "infra" / "rates.json"
ASSUMED_MFU = 0.3
ALIKE = {"curve": "evaluate"}
"""Kinds that do the same work, where nothing is learned of the first."""


class Observation(Settings):
    """One step of one run: what it did, and how long that took."""

    step: str
    """Its name, `kind:subject`."""
    unit: str
    amount: float = Field(gt=0)
    seconds: float = Field(gt=0)
    workers: int = Field(default=1, gt=0)
    """GPUs, or machines, that did it."""
    where: Where
    recipe: str
    run: str
    """Folder of the run."""
    started: str

    @property
    def kind(self) -> str:
        """download, train, …"""
        return self.step.partition(":")[0]


class Learned(Settings):
    """A file of observations."""

    observations: tuple[Observation, ...] = ()

    def with_run(self, new: Sequence[Observation]) -> "Learned":
        """With those of a run, in place of what was known of the same steps of that folder."""
        told = {(one.run, one.step) for one in new}
        kept = [one for one in self.observations if (one.run, one.step) not in told]
        return Learned(observations=(*kept, *new))


@dataclass(frozen=True)
class Rate:
    """Time of one unit on one worker."""

    seconds: float
    unit: str
    source: str
    """Where it comes from."""
    learned: bool


@dataclass(frozen=True)
class Assumed:
    """A rate before anything was measured: units a second of one worker."""

    per_second: float
    unit: str
    source: str


def read_learned(path: Path) -> Learned:
    """What a file holds, nothing where there is none. Raises ConfigurationError where it is damaged."""
    try:
        return parse(Learned, json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        return Learned()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} holds no learned rates ({error}); delete it, or name another file.") from None


def write_learned(path: Path, learned: Learned) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.writing")
    attempt.write_text(json.dumps(learned.model_dump(), indent=1) + "\n")
    attempt.replace(path)


@dataclass(frozen=True)
class RateBook:
    """All rates that a plan may use: what was learned here, what the project ships, what is assumed."""

    books: tuple[Learned, ...]
    assumed: Mapping[str, Assumed]

    def rate(self, step: str, unit: str, where: Where) -> Rate | None:
        """The rate of the step of this name, or None where nobody knows one."""
        kind = step.partition(":")[0]
        for learned in self.books:
            known = [one for one in learned.observations if one.where == where and one.unit == unit]
            named = [one for one in known if one.step == step]
            for found in (named, *([one for one in known if one.kind == of] for of in (kind, ALIKE.get(kind)))):
                if found:
                    return _mean(found, unit)
        assumed = self.assumed.get(kind) if where == "cuda" else None
        if assumed is None or assumed.unit != unit:
            return None
        return Rate(1 / assumed.per_second, unit, assumed.source, learned=False)


def _mean(found: Sequence[Observation], unit: str) -> Rate:
    """Work in proportion to its amount: the whole time over the whole amount."""
    seconds = sum(one.seconds * one.workers for one in found) / sum(one.amount for one in found)
    runs = ", ".join(dict.fromkeys(f"{one.run} of {one.started[:10]}" for one in found))
    return Rate(seconds, unit, f"measured: {' and '.join(dict.fromkeys(one.step for one in found))} in {runs}", True)


def rate_book(learned: Path, gpu_flops: float = A100.flops, mfu: float | None = None) -> RateBook:
    """The book whose learned rates are in a file; assumed ones are for GPUs of this peak rate. `mfu`: the share of it
    that training reaches, said by a person, which goes before what was learned; None: learned, else assumed.
    """
    books: tuple[Learned, ...] = (read_learned(learned), read_learned(SHIPPED))
    if mfu is not None:
        books = tuple(Learned(observations=tuple(o for o in one.observations if o.kind != "train")) for one in books)
    return RateBook(books, assumed_rates(gpu_flops, mfu))


def assumed_rates(gpu_flops: float, mfu: float | None = None) -> dict[str, Assumed]:
    """Rates of one GPU of this peak, or of one machine of 32 virtual CPUs, by kind of step."""
    trained = ASSUMED_MFU if mfu is None else mfu
    picture = flops.picture_encoding(KlConfig(), 16, 16) / (256 * 256 / 1e6)  # FLOP of a million pixels
    said = "as you say" if mfu is not None else "an assumption; the paper's, derived, stands below"
    return {
        "download": Assumed(1389, "rows", "img2dataset's README: 100M links in 20 h on one machine"),
        "captions": Assumed(10_000, "rows", "an assumption"),
        "rewrite": Assumed(20, "requests", "an assumption: a 7B model, 2,000 tokens/s of an A100, 100 each"),
        "clarity": Assumed(1_000, "pictures", "an assumption: 32 virtual CPUs, 30 a second each"),
        "embed": Assumed(0.25 * gpu_flops / 162e9, "pictures", "162 GFLOP a picture (ViT-L/14 at 224) at 25 % of peak, "
                         "assumed; decoding must keep up"),
        "aesthetic": Assumed(100_000, "pictures", "an assumption: one product of 768 numbers a picture"),
        "select": Assumed(10_000, "rows", "the demo's, on two cores, for a machine"),
        "latents": Assumed(0.3 * gpu_flops / picture, "megapixels", "the autoencoder's FLOPs at 30 % of peak, assumed; "
                           "`harmon run` makes latents in one process on the CPU today: many times slower"),
        "train": Assumed(trained * gpu_flops, "FLOP", f"{trained:.1%} of peak: {said}"),
        "curve": Assumed(0.1 * gpu_flops, "FLOP", "10 % of peak, an assumption"),
        "evaluate": Assumed(0.1 * gpu_flops, "FLOP", "10 % of peak, an assumption"),
        "audit": Assumed(200e6, "bytes", "an assumption: 200 MB/s read and hashed"),
        "report": Assumed(0.1, "pages", "an assumption"),
    }  # fmt: skip
