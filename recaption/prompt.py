"""A versioned prompt: its text, the model it is meant for, how to sample, and what an answer must pass."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse, read_yaml

PROMPTS = Path(__file__).parent / "prompts"
PLACE = "<caption>"
# What a tokenizer of a chat model reads as one token that steers it: <|im_end|> (Qwen), <|eot_id|> (Llama), </s>, ...
_LIVE = re.compile(
    r"<(?=[|\uff5c])|\[(?=/?INST\])"
    r"|<(?=/?(?:s|bos|eos|pad|unk|think|tool_call|tool_response|start_of_turn|end_of_turn)>)"
)

Action = Literal["reject", "retry", "flag"]


class Sampling(Settings):
    """How the model writes its answer."""

    method: Literal["greedy", "random"]
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    """Of random sampling; greedy has none."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    """Of one request; each gets its own, made of its content, so a prompt file names none."""

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if (self.method == "random") != (self.temperature > 0):
            raise ValueError("random sampling needs a temperature above 0, and greedy has none")
        return self


class Rule(Settings):
    """What becomes of an answer that fails a check.

    reject: the row has no caption. retry: it is asked again with another seed, and rejected when it fails
    every time. flag: the caption stays, and the check's name stands beside it.
    """

    action: Action

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value


class Leakage(Rule):
    words: int = Field(ge=3)
    """This many words in a row of the instruction itself are too many."""


class Repeats(Rule):
    times: int = Field(ge=1)
    """The same words this often in a row pass."""


class Length(Rule):
    words: int = Field(ge=1)
    """Most words of an answer."""


class Language(Rule):
    language: Literal["en", "de", "fr", "es", "it", "pt", "nl", "zh"]
    """What the answer has to be written in."""


class Checks(Settings):
    """The rules of the checks in `recaption.checks`, by name. A check without a rule is not made; those that have
    one of themselves always are."""

    empty: Rule = Rule(action="reject")
    refusal: Rule | None = None
    prompt_leakage: Leakage | None = None
    repeated_text: Repeats | None = None
    wrong_language: Language | None = None
    cut_off: Rule = Rule(action="reject")
    over_long: Length | None = None
    boilerplate: Rule | None = None
    lost_numbers: Rule | None = None
    invented_numbers: Rule | None = None


class Retry(Settings):
    """How an answer whose check says `retry` is asked for again."""

    times: int = Field(ge=1, le=10)
    temperature: float = Field(gt=0.0)


class Picture(Settings):
    """The size at which an image is sent: what Qwen2-VL's own processor would scale it to.

    Both sides become multiples of `multiple` (patches of 14 pixels, merged 2 x 2), the pixels stay between the
    bounds, and the aspect is kept as far as that allows.
    """

    multiple: int = Field(default=28, ge=1)
    min_pixels: int = Field(ge=1)
    max_pixels: int = Field(ge=1)
    quality: int = Field(default=95, ge=1, le=100)
    """Of the JPEG that is sent."""


class Prompt(Settings):
    """One version of a prompt. Never edited once captions were made with it: a change is a new version."""

    version: str = Field(pattern=r"^[a-z]+(-[a-z]+)*-v[0-9]+$")
    source: str
    model: str
    applies_to: Literal["dense", "images"]
    """Rows whose caption is dense (see `recaption.dense`), or every row that has an image."""
    text: str
    """With <caption> where the row's caption goes, or without it for a prompt that shows the image."""
    image: Picture | None = None
    """The image is shown, at this size; None: the caption is all that the model sees."""
    sampling: Sampling
    retry: Retry | None = None
    checks: Checks

    @field_validator("text")
    @classmethod
    def _has_at_most_one_place(cls, text: str) -> str:
        if text.count(PLACE) > 1:
            raise ValueError(f"must hold {PLACE} exactly once, or not at all where an image is shown")
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.image is None and PLACE not in self.text:
            raise ValueError(f"text must hold {PLACE} exactly once: no image is shown")
        retried = [name for name, rule in self.rules.items() if rule.action == "retry"]
        if bool(retried) != (self.retry is not None):
            raise ValueError("`retry` says how checks with the action retry are asked again: have both or neither")
        return self

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules given, by the name of their check, in the order of `Checks`."""
        named = {name: getattr(self.checks, name) for name in Checks.model_fields}
        return {name: rule for name, rule in named.items() if rule is not None}

    @property
    def hash(self) -> str:
        """Hash of all that decides what captions come out, checks included; `source`, `model` are notes."""
        return sha256_hex(canonical_json(self.model_dump(mode="json", exclude={"source", "model"})))

    @property
    def asking_hash(self) -> str:
        """Hash of what the model is sent: two prompts that differ in their checks alone share their answers."""
        return sha256_hex(canonical_json(self.model_dump(mode="json", include={"text", "image", "sampling"})))

    @property
    def name(self) -> str:
        """The version without its number: rewrite-v1 and rewrite-v2 are versions of `rewrite`."""
        return self.version.rpartition("-v")[0]

    def message(self, caption: str | None) -> str:
        """The user's turn; `caption` is put in place as `without_control_tokens` has it."""
        return self.text if caption is None else self.text.replace(PLACE, without_control_tokens(caption))

    @property
    def reads_caption(self) -> bool:
        """Whether the row's own caption is part of the question."""
        return PLACE in self.text


def without_control_tokens(text: str) -> str:
    """`text` with a space inside whatever would end the user's turn or steer the model: words of strangers are read."""
    return _LIVE.sub(r"\g<0> ", text)


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
