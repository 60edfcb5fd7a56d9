"""Terms: what binds a source's samples, who accepted it, and what follows for everything made from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from pydantic import field_validator

from pipelines.catalogue import UNSTATED, Source
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse

MEANINGS = {
    "gated": "the publisher wants to know who takes it",
    "agreement": "an agreement was signed",
    "non-commercial": "no commercial use",
    "model-output": "captions or images under the terms of the service whose model made them",
    "no-redistribution": "images may not be passed on",
    "share-alike": "what is made from it keeps its licence",
    "personal-data": "the publisher's rows name people; those fields are not taken",
}
"""Restriction to what it means for whoever uses samples under it."""


class Acceptance(Settings):
    """That someone accepted a source's terms."""

    by: str
    """Who: a person, and for whom they may speak."""
    what: str
    """What was accepted, as it was called: "ImageNet terms of access"."""
    when: date
    """The day."""

    @field_validator("by", "what")
    @classmethod
    def _said(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("when")
    @classmethod
    def _past(cls, value: date) -> date:
        if value > datetime.now(UTC).date():
            raise ValueError(f"{value} is in the future")
        return value


def check_accepted(source: Source, accepted: Mapping[str, Acceptance]) -> None:
    """Refuse a source whose terms nobody has accepted, and one of the user's own whose licence nobody has stated.

    Raises ConfigurationError that says what to read and write.
    """
    if source.licence == UNSTATED:
        raise ConfigurationError(
            f"{source.name} is your own, and nobody has said under what licence: state it with --licence, as `licence` "
            "of an entry of your own, or in a recipe with files.NAME.entry=[licence=...]."
        )
    if source.needs_acceptance and source.name not in accepted:
        needed = sorted({"gated", "agreement", "non-commercial"} & set(source.restrictions))
        raise ConfigurationError(
            f"{source.name} is {' and '.join(needed)} and nobody has accepted its terms: {source.agreement} "
            f"Then record it: terms: {{{source.name}: {{by: WHO, what: WHAT WAS ACCEPTED, when: YYYY-MM-DD}}}} in the "
            "recipe, or in a file given with --terms."
        )


def terms_record(source: Source, accepted: Mapping[str, Acceptance]) -> dict[str, Any]:
    """What a manifest says of a source's terms. Raises ConfigurationError as `check_accepted` does."""
    check_accepted(source, accepted)
    record: dict[str, Any] = {"licence": source.licence, "terms": source.terms}
    if source.restrictions:
        record["restrictions"] = sorted(source.restrictions)
    if source.name in accepted:
        record["accepted"] = accepted[source.name].model_dump(mode="json")
    return record


@dataclass(frozen=True)
class EffectiveTerms:
    """What binds a whole: everything that binds one of its sources."""

    restrictions: Mapping[str, tuple[str, ...]]
    """Restriction to the sources that bring it."""
    licences: Mapping[str, str]
    """Source to licence."""
    unaccepted: tuple[str, ...]
    """Sources that need an acceptance and have none on record."""

    def lines(self) -> Iterator[str]:
        """For a person: one line for the whole, one for each restriction, one for each source."""
        yield "effective terms: " + (", ".join(sorted(self.restrictions)) or "nothing beyond the licences below")
        for restriction, sources in sorted(self.restrictions.items()):
            yield f"  {restriction} ({MEANINGS.get(restriction, 'as its source says')}): {', '.join(sources)}"
        for source, licence in sorted(self.licences.items()):
            yield f"  {source}: {licence}" + (
                " [terms NOT accepted]" if source in self.unaccepted else " [NOT stated]" if licence == UNSTATED else ""
            )

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "restrictions": {name: list(sources) for name, sources in sorted(self.restrictions.items())},
            "licences": dict(sorted(self.licences.items())),
            "unaccepted": list(self.unaccepted),
        }


def effective_terms(records: Mapping[str, Any]) -> EffectiveTerms:
    """The terms of everything made from these sources, from their records in a manifest."""
    restrictions: dict[str, list[str]] = {}
    unaccepted = []
    for name, record in sorted(records.items()):
        bound = set(record.get("restrictions", ())) | ({record.get("terms")} & set(MEANINGS))
        for restriction in sorted(bound):
            restrictions.setdefault(str(restriction), []).append(name)
        if bound & {"gated", "agreement", "non-commercial"} and not record.get("accepted"):
            unaccepted.append(name)
    licences = {name: str(record.get("licence", "not recorded")) for name, record in records.items()}
    return EffectiveTerms({name: tuple(names) for name, names in restrictions.items()}, licences, tuple(unaccepted))


def effective_of(sources: list[Source], accepted: Mapping[str, Acceptance]) -> EffectiveTerms:
    """The terms of everything made from these catalogue entries, accepted or not yet."""
    return effective_terms(
        {
            source.name: {
                "licence": source.licence,
                "terms": source.terms,
                "restrictions": source.restrictions,
                "accepted": source.name in accepted,
            }
            for source in sources
        }
    )


def accepted_in(data: Mapping[str, Any], where: str) -> dict[str, Acceptance]:
    """The acceptances of a YAML file's key `terms`: a recipe's, or a file of nothing else.

    Raises ConfigurationError where one is incomplete.
    """
    terms = data.get("terms") or {}
    if not isinstance(terms, Mapping):
        raise ConfigurationError(f"{where}: terms: name each source with by, what and when.")
    return {str(name): parse(Acceptance, record or {}, f"{where}: terms.{name}") for name, record in terms.items()}
