"""What a recaptioning computes: the prompt, the model and the rows, which name the column group that holds it."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import Reads, Step
from recaption.known import CAPTIONS, caption_groups
from recaption.language_model import LanguageModel
from recaption.prompt import Prompt
from recaption.rows import Rows

STEP_VERSION = 3


@dataclass(frozen=True)
class Recaption:
    """The new captions depend on nothing but this and what goes in."""

    prompt: Prompt
    model: LanguageModel
    rows: Rows = field(default_factory=Rows)

    @property
    def configuration(self) -> dict[str, Any]:
        """The part of the step key; the prompt's hash covers its text, sampling and checks."""
        chosen = self.rows.model_dump(mode="json", exclude_defaults=True)
        return {
            "prompt": self.prompt.version,
            "prompt_hash": self.prompt.hash,
            "model": self.model.identity(),
        } | ({"rows": chosen} if chosen else {})

    @property
    def group(self) -> str:
        """Name of the column group, caption.<prompt>-<model>-<start of the configuration's hash>."""
        digest = sha256_hex(canonical_json(self.configuration))
        return f"{CAPTIONS}{self.prompt.version}-{self.model.name}-{digest[:8]}"

    def step(self, dataset: Dataset) -> Step:
        """The step that writes the group to `dataset`: "rewrite" where captions go in, "caption" where images do."""
        reads = (SOURCE, *((IMAGES,) if self.prompt.image else ()), *((self.rows.base,) if self.rows.base else ()))
        name = "caption" if self.prompt.image else "rewrite"
        return Step(name, STEP_VERSION, self.configuration | {"group": self.group}, (Reads(dataset, reads),))


def with_base(recaption: Recaption, dataset: Dataset) -> Recaption:
    """The same with the newest caption group that it goes on from, where its rows name none.

    What is missing goes on from the same prompt, word for word; what failed, was flagged or changed may go on
    from any version of the prompt. `all` needs none, and gets the number of its round.

    Raises:
        ConfigurationError: the rows need an earlier group and there is none, or the one they name is none.
    """
    rows, groups = recaption.rows, set(caption_groups(dataset))
    if rows.base is not None and rows.base not in groups:
        known = ", ".join(sorted(groups)) or "none"
        raise ConfigurationError(f"{dataset.root} has no caption group '{rows.base}' to go on from; it has {known}.")
    if rows.only == "all":
        return _next_round(recaption, dataset)
    if rows.base is not None:
        return recaption
    for commit in reversed(dataset.commits()):
        group = commit.configuration.get("group")
        if group in groups and _is_before(commit, recaption):
            return replace(recaption, rows=rows.model_copy(update={"base": group}))
    if rows.only != "missing":
        raise ConfigurationError(
            f"--only {rows.only}: {dataset.root} has no earlier captions of the prompt '{recaption.prompt.name}'; "
            "caption it first, or name a group with --base."
        )
    return recaption


def _next_round(recaption: Recaption, dataset: Dataset) -> Recaption:
    """The same in the first round that is not committed: a killed round goes on, a finished one is not the last."""
    committed = {canonical_json(commit.configuration) for commit in dataset.commits()}
    rounds = (
        replace(recaption, rows=recaption.rows.model_copy(update={"round": number})) for number in itertools.count()
    )
    return next(one for one in rounds if canonical_json(one.step(dataset).configuration) not in committed)


def _is_before(commit: Commit, recaption: Recaption) -> bool:
    said = commit.configuration
    if recaption.rows.only == "missing":
        return said.get("prompt_hash") == recaption.prompt.hash and said.get("model") == recaption.model.identity()
    return str(said.get("prompt", "")).rpartition("-v")[0] == recaption.prompt.name
