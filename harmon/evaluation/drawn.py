"""Pictures that a model drew of a benchmark's prompts, as everything that scores them takes them."""

from dataclasses import dataclass
from typing import Protocol

from harmon.evaluation.question import Prompt


class Drawn(Protocol):
    """One drawn picture. It is a `question.Picture` too: its bytes are read when they are wanted."""

    @property
    def key(self) -> str:
        """Unique within the run, and the same in every run of the same prompts."""
        ...

    @property
    def prompt(self) -> Prompt:
        """What was drawn."""
        ...

    @property
    def number(self) -> int:
        """Which of the prompt's pictures it is, from 0."""
        ...

    @property
    def where(self) -> str:
        """What errors call it."""
        ...

    def read(self) -> bytes:
        """The encoded picture."""
        ...


@dataclass(frozen=True)
class DrawnBytes:
    """A drawn picture that is at hand."""

    prompt: Prompt
    number: int
    data: bytes

    @property
    def key(self) -> str:
        return f"{self.prompt.id}/{self.number:04}"

    @property
    def where(self) -> str:
        return f"picture {self.number} of {self.prompt.benchmark} {self.prompt.id}"

    def read(self) -> bytes:
        return self.data
