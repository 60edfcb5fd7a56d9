"""What a step is: named by what it computes and from what, never by how."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import InputEntry, step_identity

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")


@dataclass(frozen=True)
class Reads:
    """What a step reads of one dataset: exactly these groups ("images", "source", "clarity", …)."""

    dataset: Dataset
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """What is computed, and from what. How (workers, endpoints, batch sizes, folders) has no place here."""

    name: str
    version: int
    """Raised by the author when the same configuration would give other results."""
    configuration: Mapping[str, Any]
    reads: tuple[Reads, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigurationError(f"{self.name!r} cannot name a step: lower-case letters, digits, '.', '_' and '-'")

    @cached_property
    def inputs(self) -> tuple[InputEntry, ...]:
        """The datasets read, at their commits of now. Raises HarmonError where one is absent."""
        return tuple(_input(reads) for reads in self.reads)

    @cached_property
    def identity(self) -> bytes:
        """The bytes whose SHA-256 is the key."""
        groups = [entry.groups for entry in self.inputs]
        return step_identity(self.name, self.version, self.configuration, groups)

    @cached_property
    def key(self) -> str:
        """64 hex digits that name this work: equal key, equal result."""
        return sha256_hex(self.identity)

    @property
    def key8(self) -> str:
        """The first eight digits of the key, as they stand in paths."""
        return self.key[:8]


def _input(reads: Reads) -> InputEntry:
    head = reads.dataset.head
    if head is None:
        raise HarmonError(f"the dataset {reads.dataset.root} has no commit yet; run the step that writes it first")
    return InputEntry(
        dataset=reads.dataset.name,
        commit=head.number,
        content_hash=head.content_hash,
        groups={group: reads.dataset.group_hash(group) for group in sorted(reads.groups)},
    )
