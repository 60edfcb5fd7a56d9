"""Which language model wrote a caption: a short name and the hash of the files that decide what it says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError
from pipelines.storage import file_sha256

# Files of a Hugging Face model folder that decide its output. Of generation_config.json only the tokens that end a
# turn count: every engine is told to sample as the prompt says and not as the folder prefers (Qwen2.5 ships a
# repetition penalty of 1.05 there).
_DECIDING = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class LanguageModel:
    """A model: its local folder, the short name that column groups carry, and its identity."""

    folder: Path | None
    """None: only a server has it."""
    name: str
    sha256: str
    """Of its files; of its name and revision where only a server has it."""

    def identity(self) -> dict[str, str]:
        """The part of a step key: the same files under another path or name are the same model."""
        return {"sha256": self.sha256}


def language_model(folder: str | Path, name: str | None = None) -> LanguageModel:
    """Read and hash a Hugging Face folder. Letters, digits and dots of `name` (default: the folder's) stay.

    Raises:
        ConfigurationError: no folder, no safetensors weights or no tokenizer in it.
    """
    folder = Path(folder).resolve()
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} is no Hugging Face model folder with safetensors weights.")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationError(
            f"{folder} has no tokenizer.json beside its weights; save the model's tokenizer there."
        )
    files = [*weights, *(folder / file for file in _DECIDING if (folder / file).is_file())]
    decides: dict[str, Any] = {file.name: file_sha256(file) for file in files}
    for template in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        decides[f"additional_chat_templates/{template.name}"] = file_sha256(template)
    if ends := _end_tokens(folder / "generation_config.json"):
        decides["eos_token_id"] = ends
    digest = sha256_hex(canonical_json(decides))
    return LanguageModel(folder=folder, name=_short(name or folder.name), sha256=digest)


def _end_tokens(path: Path) -> list[int]:
    """The tokens that end a turn by a generation_config.json; none where it is absent or names none."""
    if not path.is_file():
        return []
    try:
        named = json.loads(path.read_text()).get("eos_token_id")
    except (ValueError, AttributeError):
        raise ConfigurationError(f"{path} is no JSON object; download the model's folder again.") from None
    return sorted(named) if isinstance(named, list) else [] if named is None else [named]


def served_model(name: str, revision: str = "") -> LanguageModel:
    """A model that only a server has, known by the name it is served under, such as Qwen/Qwen2.5-7B-Instruct.

    Its files cannot be hashed from here: `revision` tells two versions of the same name apart.
    """
    digest = sha256_hex(canonical_json({"served_model": name, "revision": revision}))
    return LanguageModel(folder=None, name=_short(name.rpartition("/")[2]), sha256=digest)


def local_folder(model: LanguageModel) -> Path:
    """The model's folder. Raises ConfigurationError where only a server has it."""
    if model.folder is None:
        raise ConfigurationError(f"The model '{model.name}' has no folder here; name one, or endpoints that serve it.")
    return model.folder


def model_configuration(model: LanguageModel) -> dict[str, Any]:
    """What its config.json says."""
    said: dict[str, Any] = json.loads((local_folder(model) / "config.json").read_text())
    return said


def sees_images(model: LanguageModel) -> bool:
    """Whether it is a vision-language model."""
    return "vision_config" in model_configuration(model)


def context_length(model: LanguageModel) -> int:
    """Most tokens of prompt and answer together."""
    said = model_configuration(model)
    return int(said.get("text_config", said)["max_position_embeddings"])


def _short(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == ".")
