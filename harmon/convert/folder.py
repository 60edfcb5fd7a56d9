"""The Hugging Face folder: sharded safetensors, sizes, tokenizer, processor, model card, and its own code.

    model-00001-of-00002.safetensors   the model under the released names, every tensor in its own float type
    vae.safetensors                    the autoencoder, `vae.` before kl16.ckpt's names
    unused.safetensors                 tensors of kl16.ckpt that nothing uses, where it had any
    model.safetensors.index.json       which name is in which file
    config.json, processor_config.json, tokenizer.json, tokenizer_config.json, README.md, *.py

Reading a folder runs none of its code. One that Transformers' save_pretrained wrote is read too: its names and
sizes are the same, and where one file holds all weights it is model.safetensors, without an index.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from harmon.convert.autoencoders import dump_sizes, parse_sizes
from harmon.convert.card import model_card
from harmon.convert.code import remote_code
from harmon.convert.contents import Contents, read_tensors, without_tied_head
from harmon.convert.writing import whole_folder
from harmon.model.autoencoder import KlConfig
from harmon.model.config import HarmonConfig
from pipelines.errors import HarmonError
from pipelines.settings import parse

CONFIG, INDEX, VAE, UNUSED = "config.json", "model.safetensors.index.json", "vae.safetensors", "unused.safetensors"
SINGLE = "model.safetensors"
SHARD_BYTES = 2 * 10**9  # what one process must hold while it writes
_PREFIX = "vae."


class _FolderConfig(BaseModel):
    """What of config.json is ours; Transformers adds keys of its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    harmon: HarmonConfig
    autoencoder: dict[str, Any]
    px: int = Field(gt=0)
    sampling: dict[str, Any] = Field(default_factory=dict)
    released: dict[str, Any] = Field(default_factory=dict)


def is_folder(path: Path) -> bool:
    """Whether `path` is a Harmon model in a Hugging Face folder."""
    try:
        values = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == "harmon"


def open_folder(folder: Path) -> Contents:
    """The model in a Hugging Face folder.

    Raises:
        ConfigurationError: config.json is not one of ours.
        HarmonError: a file is missing or damaged, or the weights do not fit the sizes.
    """
    config = parse(_FolderConfig, _json(folder / CONFIG), str(folder / CONFIG))
    try:
        autoencoder = parse_sizes(config.autoencoder)
    except ValidationError as error:
        raise HarmonError(f"{folder / CONFIG}: autoencoder: {error.errors()[0]['msg']}.") from None
    files = _weight_files(folder)
    tensors = {name: value for file in files for name, value in read_tensors(file).items()}
    latent = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    own = {name: value for name, value in tensors.items() if not name.startswith(_PREFIX)}
    unused = folder / UNUSED
    tokenizer = folder / "tokenizer.json"
    return Contents(
        config=config.harmon,
        tensors=without_tied_head(own, config.harmon, folder),
        autoencoder=autoencoder,
        autoencoder_tensors=latent,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        px=config.px,
        sampling=config.sampling,
        released_head=bool(config.released.get("lm_head")),
        unused=read_tensors(unused) if unused.is_file() else {},
        weights=tuple(files),
    ).checked(folder)


def write_folder(
    contents: Contents,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `contents` into the new folder `folder`; memory for one shard at a time. `on_progress` is told MB
    written and in all.

    Raises:
        ConfigurationError: `folder` already holds something, or there is no tokenizer.
    """
    contents.check_shared()
    tokenizer = contents.named_tokenizer()
    with whole_folder(folder) as attempt:
        _write_weights(contents, attempt, shard_bytes, on_progress)
        _write_json(attempt / CONFIG, _config(contents))
        _write_json(attempt / "processor_config.json", _processor(contents))
        (attempt / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        _write_json(attempt / "tokenizer_config.json", _TOKENIZER)
        (attempt / "README.md").write_text(model_card(contents), encoding="utf-8")
        for name, source in remote_code().items():
            (attempt / name).write_text(source, encoding="utf-8")
    return sorted(folder.iterdir())


def _write_weights(
    contents: Contents, folder: Path, shard_bytes: int, on_progress: Callable[[int, int], None] | None
) -> None:
    latent = {f"{_PREFIX}{name}": value for name, value in contents.autoencoder_tensors.items()}
    size = sum(value.nbytes for value in (*contents.tensors.values(), *latent.values()))
    written = 0
    split = split_torch_state_dict_into_shards(
        dict(contents.tensors),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    shards = list(split.filename_to_tensors.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save({name: contents.tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
        written += sum(contents.tensors[name].nbytes for name in names)
        if on_progress:
            on_progress(written // 10**6, max(1, size // 10**6))
    _save(latent, folder / VAE, _vae_metadata(contents))
    weight_map |= dict.fromkeys(latent, VAE)
    if contents.unused:
        _save(contents.unused, folder / UNUSED)
    _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _save(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt", **(metadata or {})})


def _vae_metadata(contents: Contents) -> dict[str, str]:
    """What harmon.latents.load_autoencoder needs, so that the latents step can read the file too."""
    sizes = contents.autoencoder
    return {"config": sizes.model_dump_json()} if isinstance(sizes, KlConfig) else {}


def _config(contents: Contents) -> dict[str, Any]:
    return {
        "architectures": ["PretrainedHarmon"],
        "auto_map": {
            "AutoConfig": "configuration_harmon.PretrainedHarmonConfig",
            "AutoModel": "modeling_harmon.PretrainedHarmon",
        },
        "model_type": "harmon",
        "dtype": _common_type(contents),
        "harmon": contents.config.model_dump(mode="json"),
        "autoencoder": dump_sizes(contents.autoencoder),
        "px": contents.px,
        "sampling": dict(contents.sampling),
        "released": {"lm_head": contents.released_head},
    }


def _processor(contents: Contents) -> dict[str, Any]:
    return {
        "processor_class": "HarmonProcessor",
        "auto_map": {"AutoProcessor": "processing_harmon.HarmonProcessor"},
        "image_stride": contents.autoencoder.stride,
        "patch_size": contents.config.mar.patch_size,
        "buffer_size": contents.config.mar.buffer_size,
        "px": contents.px,
    }


_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "clean_up_tokenization_spaces": False,
    # the template of training: no system turn, answers closed by <|im_end|> (MODEL.md 2.3)
    "chat_template": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}",
}


def _common_type(contents: Contents) -> str:
    """The narrowest float type that holds all of the model: what from_pretrained loads all but the vae as."""
    kinds = {value.dtype for value in contents.tensors.values()}
    return str(reduce(torch.promote_types, kinds)).removeprefix("torch.")


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that the index names, each once; without an index the single file."""
    if not (folder / INDEX).is_file() and (folder / SINGLE).is_file():
        return [folder / SINGLE]
    weight_map = _json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HarmonError(f"{folder / INDEX} names no weights; convert the checkpoint again.")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise HarmonError(f"{folder / INDEX} names {outside[0]!r}, which is no safetensors file of that folder.")
    return [folder / name for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarmonError(f"{file} cannot be read ({error}); convert the checkpoint again.") from None
    if not isinstance(values, dict):
        raise HarmonError(f"{file} holds no mapping; convert the checkpoint again.")
    return values


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
