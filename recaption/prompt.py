"""A versioned prompt: its text, the model it is meant for, how to sample, and what an answer must pass."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse, read_yaml

PROMPTS = Path(__file__).parent / "prompts"
PLACE = "<caption>"


class Sampling(Settings):
    """How the model writes its answer."""

    method: Literal["greedy"]
    max_tokens: int = Field(ge=1)


class Checks(Settings):
    """Limits of the output checks in `recaption.checks`."""

    words_at_most: int = Field(ge=1)
    leaked_words: int = Field(ge=3)
    repeats_at_most: int = Field(ge=1)


class Prompt(Settings):
    """One version of a prompt. Never edited once captions were made with it: a change is a new version."""

    version: str = Field(pattern=r"^[a-z]+-v[0-9]+$")
    source: str
    model: str
    applies_to: Literal["image2text", "text2image"]
    text: str
    sampling: Sampling
    checks: Checks

    @field_validator("text")
    @classmethod
    def _has_one_place(cls, text: str) -> str:
        if text.count(PLACE) != 1:
            raise ValueError(f"must hold {PLACE} exactly once")
        return text

    @property
    def hash(self) -> str:
        """Hash of all that decides what captions come out, checks included; `source`, `model` are notes."""
        return sha256_hex(canonical_json(self.model_dump(mode="json", exclude={"source", "model"})))

    def message(self, caption: str) -> str:
        """The user's turn that asks for a rewrite of `caption`, which is put in place as it stands."""
        return self.text.replace(PLACE, caption)


def load_prompt(version: str, folder: Path = PROMPTS) -> Prompt:
    """The prompt that stands in `folder` under its version.

    Raises:
        ConfigurationError: no such version, a file that is no prompt, or one whose name and version differ.
    """
    path = folder / f"{version}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise ConfigurationError(f"There is no prompt '{version}' in {folder}; known versions: {known}.")
    prompt = parse(Prompt, read_yaml(path), str(path))
    if prompt.version != version:
        raise ConfigurationError(f"{path} calls itself '{prompt.version}'; rename the file or its version.")
    return prompt
