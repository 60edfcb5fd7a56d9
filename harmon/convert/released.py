"""The released files: `harmon_*.pth`, a flat pickle of tensors, and `kl16.ckpt`, an autoencoder under `model`.

Neither names its sizes or holds a tokenizer. The sizes are those of the published model that the shapes fit,
or what the user names; the tokenizer is that of a Qwen2.5-Instruct folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harmon.convert.autoencoders import kl_sizes
from harmon.convert.contents import EMBEDDING, HEAD, Contents, without_tied_head
from harmon.convert.pickles import read_pickle, tensors_of
from harmon.convert.writing import whole_folder
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from pipelines.errors import ConfigurationError, HarmonError

KL16 = "kl16.ckpt"
PX = 512  # the release draws at 512 px (MODEL.md section 3)
PUBLISHED = {"harmon-0.5b": "harmon_0.5b.pth", "harmon-1.5b": "harmon_1.5b.pth"}


@dataclass(frozen=True)
class Named:
    """What a user may name beside a checkpoint: what its form lacks, and which of its weights are meant."""

    tokenizer: Path | None = None
    """A folder that holds tokenizer.json."""
    autoencoder: Path | None = None
    """kl16.ckpt, where it does not lie beside the .pth file."""
    model: str | None = None
    """A preset or a file of sizes, for weights of a size that was never published."""
    average: bool = False
    """Of a run folder: the averaged weights that it keeps beside its weights are meant."""


def open_released(file: Path, named: Named) -> Contents:
    """The released model in `file` (.pth) with the autoencoder and tokenizer beside it or `named`.

    Raises:
        ConfigurationError: a file is absent, or the sizes are unknown.
        HarmonError: a file is damaged, would run code, or holds other keys than the model's.
    """
    tensors = tensors_of(read_pickle(file), file)
    config = model_sizes(named.model) if named.model else _published(tensors, file)
    kl_file = named.autoencoder or file.parent / KL16
    if not kl_file.is_file():
        raise ConfigurationError(f"{file} needs its autoencoder: there is no {kl_file}; name kl16.ckpt with --vae.")
    sizes, used, unused = read_kl(kl_file)
    return Contents(
        config=config,
        tensors=without_tied_head(tensors, config, file),
        autoencoder=sizes,
        autoencoder_tensors=used,
        tokenizer=tokenizer_file(named.tokenizer, file.parent),
        px=PX,
        released_head=HEAD in tensors and config.llm.tie_word_embeddings,
        unused=unused,
        weights=(file, kl_file),
    ).checked(file)


def read_kl(file: Path) -> tuple[KlConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Sizes, used and unused tensors of kl16.ckpt: the weights are its entry `model`, and it may hold others."""
    held = read_pickle(file)
    if "model" not in held:
        raise HarmonError(f"{file} has no entry 'model' (it has {_some(held)}); name kl16.ckpt.")
    tensors = tensors_of(held["model"], f"{file}['model']")
    sizes = kl_sizes(tensors, file)
    with torch.device("meta"):
        own = KlAutoencoder(sizes).state_dict()
    return (
        sizes,
        {name: value for name, value in tensors.items() if name in own},
        {name: value for name, value in tensors.items() if name not in own},
    )


def write_released(contents: Contents, folder: Path) -> list[Path]:
    """Write `harmon_*.pth` and `kl16.ckpt` into the new folder `folder`; tokenizer.json too where there is one.

    Raises:
        ConfigurationError: `folder` holds something, or the autoencoder is a stand-in, which kl16.ckpt cannot be.
    """
    if not isinstance(contents.autoencoder, KlConfig):
        raise ConfigurationError(
            "This model reads the patch latent, a stand-in for KL-16 that kl16.ckpt cannot hold; "
            "convert it to a Hugging Face folder (--to huggingface)."
        )
    if contents.autoencoder.scale != KlConfig().scale:
        raise ConfigurationError(
            f"The autoencoder's latents are scaled by {contents.autoencoder.scale} and kl16.ckpt cannot say so; "
            "convert it to a Hugging Face folder (--to huggingface)."
        )
    tensors = dict(contents.tensors)
    if contents.released_head:
        tensors[HEAD] = tensors[EMBEDDING]
    with whole_folder(folder) as attempt:
        torch.save(tensors, attempt / published_name(contents.config))
        torch.save({"model": {**contents.autoencoder_tensors, **contents.unused}}, attempt / KL16)
        if contents.tokenizer:
            (attempt / "tokenizer.json").write_bytes(contents.tokenizer.read_bytes())
    return sorted(folder.iterdir())


def model_sizes(name: str) -> HarmonConfig:
    """A preset, or the sizes in a YAML or JSON file."""
    return HarmonConfig.preset(name) if name in PUBLISHED else HarmonConfig.from_file(name)


def published_name(config: HarmonConfig) -> str:
    """The name that a release of this size has; harmon.pth for any other size."""
    return next((file for name, file in PUBLISHED.items() if HarmonConfig.preset(name) == config), "harmon.pth")


def tokenizer_file(named: Path | None, beside: Path) -> Path | None:
    """tokenizer.json of the folder that was named, else the one beside the weights, else None."""
    if named is None:
        file = beside / "tokenizer.json"
        return file if file.is_file() else None
    if not (named / "tokenizer.json").is_file():
        raise ConfigurationError(f"There is no tokenizer.json in {named}; name a Qwen2.5-Instruct folder.")
    return named / "tokenizer.json"


def _published(tensors: Mapping[str, Tensor], file: Path) -> HarmonConfig:
    """The published model with as many layers and widths; `Contents.checked` compares the rest key by key."""
    for name in PUBLISHED:
        config = HarmonConfig.preset(name)
        with torch.device("meta"):
            own = Harmon(config).state_dict()
        telling = ("mar.fake_latent", "llm.model.norm.weight")
        if all(key in tensors and tensors[key].shape == own[key].shape for key in telling):
            return config
    raise ConfigurationError(
        f"{file} has the sizes of no published model ({', '.join(PUBLISHED)}); name its sizes with "
        "--model FILE (as harmon/parts/demo/harmon.yaml)."
    )


def _some(held: Mapping[str, Any]) -> str:
    names = [str(name) for name in held]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
