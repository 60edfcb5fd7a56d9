"""Whoever looks at drawn pictures for a benchmark: a detector, a judge, an extractor of features.

An examiner writes down what it sees in columns of these names, for each picture; the official scorers
(harmon.evaluation.scorers) make numbers of them. So a number says which examiner it rests on, and other scores of the
same looks cost nothing.

    geneval               correct bool, why string (the official words)
    wise-legacy           consistency, realism, aesthetic_quality float64, raw and answered_as string
    wise-verified         score float64, raw and answered_as string (what the server called the model)
    dpg-bench             answers list<string>, in the order of the prompt's questions
    mjhq-30k, mscoco-30k  features list<float32>

Beside them stand `status` and `reason`: a picture that could not be judged has nulls, "failed" and why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from harmon.evaluation.drawings import DrawnPicture
from harmon.evaluation.scorers.fid import Moments
from pipelines.workspace import Journal


class Examiner(Protocol):
    """Looks at the pictures of one benchmark."""

    @property
    def name(self) -> str:
        """As the report tells it: model, and where it came from."""
        ...

    @property
    def configuration(self) -> Mapping[str, Any]:
        """What decides its columns, as JSON: part of their step's key. Endpoints, devices and batches do not."""
        ...

    @property
    def differs(self) -> Sequence[str]:
        """What sets its number apart from the official one, a sentence each; none where it is the official one."""
        ...

    def examine(self, pictures: Sequence[DrawnPicture], journal: Journal) -> Sequence[Mapping[str, Any]]:
        """The columns of each picture, in order; of all pictures of some prompts. `journal` is these pictures' alone,
        free for what a killed attempt need not do again."""
        ...


@dataclass(frozen=True, eq=False)
class Reference:
    """What features of drawn pictures are compared with: those of real ones."""

    moments: Moments
    identity: str
    """What the set is known by: `set:` or `file:` with a sha256."""
    fact: str = ""
    """Of the prompts, by whose values it is compared again; empty: by none."""
    by: Mapping[str, Moments] = field(default_factory=dict)
    """Of the real pictures of each value."""


@runtime_checkable
class Comparing(Protocol):
    """An examiner whose features are compared with those of real pictures."""

    def reference(self, on_progress: Callable[[int, int], None] | None = None) -> Reference:
        """The real pictures' features, made once."""
        ...


@dataclass(frozen=True)
class Missing:
    """Why nobody looks at the pictures of a benchmark here, and what would."""

    what: str
    """What is absent, as a noun: "GenEval's detector"."""
    remedy: str
    """What to do, a sentence with the command."""
