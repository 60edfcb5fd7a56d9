"""The start of stage 1 from the parts that others trained: MAR, Qwen2.5-Instruct and KL-16.

The two connectors (`proj_in`, `proj_out`) belong to none of them and start fresh (paper, section 3.3), from a
seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harmon.convert.autoencoders import count_numbered
from harmon.convert.contents import Contents, read_tensors, without_tied_head
from harmon.convert.pickles import read_pickle, tensors_of
from harmon.convert.released import PX, model_sizes, read_kl, tokenizer_file
from harmon.model.config import HarmonConfig, HeadConfig, MarConfig, QwenConfig
from harmon.model.harmon import Harmon
from harmon.seeds import stream
from pipelines.errors import ConfigurationError, HarmonError

MAR_HEADS = {768: 12, 1024: 16, 1280: 16}  # MAR-B, MAR-L, MAR-H by width (MAR, arXiv 2406.11838; its released code)


def open_parts(mar: Path, qwen: Path, kl16: Path, model: str | None = None, seed: int = 0) -> Contents:
    """MAR's `checkpoint-last.pth` (its entry `model_ema`), a Qwen2.5 folder and `kl16.ckpt` as one model.

    `model` names a preset or a file of sizes for a MAR of another width than MAR_HEADS. Each part keeps its
    float type; connectors are float32.

    Raises:
        ConfigurationError: a file is absent, or the sizes are unknown.
        HarmonError: a file is damaged, would run code, or holds other keys than its part of the model.
    """
    sizes, head, drawn = read_mar(mar, model)
    config = HarmonConfig(llm=QwenConfig.from_folder(qwen), mar=sizes, head=head)
    autoencoder, latent, unused = read_kl(kl16)
    config = config.model_copy(update={"latent_stride": autoencoder.stride})
    spoken, files = _qwen_tensors(qwen)
    tensors = {f"llm.{name}": value for name, value in spoken.items()}
    return Contents(
        config=config,
        tensors={
            **without_tied_head(tensors, config, qwen),
            **{f"mar.{name}": value for name, value in drawn.items()},
            **_fresh_connectors(config, seed),
        },
        autoencoder=autoencoder,
        autoencoder_tensors=latent,
        tokenizer=tokenizer_file(qwen, qwen),
        px=PX,
        unused=unused,
        weights=(mar, *files, kl16),
    ).checked(f"{mar}, {qwen}, {kl16}")


def read_mar(file: Path, model: str | None = None) -> tuple[MarConfig, HeadConfig, dict[str, Tensor]]:
    """MAR's `checkpoint-last.pth` alone: its sizes and the tensors of its entry `model_ema`.

    `model` and what is raised as `open_parts`.
    """
    held = read_pickle(file)
    if "model_ema" not in held:
        raise HarmonError(f"{file} has no entry 'model_ema'; name MAR's checkpoint-last.pth.")
    drawn = tensors_of(held["model_ema"], f"{file}['model_ema']")
    given = model_sizes(model) if model else None
    return (
        given.mar if given else _mar_sizes(drawn, file),
        given.head if given else _head_sizes(drawn),
        drawn,
    )


def _fresh_connectors(config: HarmonConfig, seed: int) -> dict[str, Tensor]:
    """`proj_in` and `proj_out` as the model initialises them: a model of one layer a part has the same."""
    shallow = HarmonConfig(
        llm=config.llm.model_copy(update={"num_hidden_layers": 1, "vocab_size": 1}),
        mar=config.mar.model_copy(update={"encoder_depth": 1, "decoder_depth": 1, "class_count": 0}),
        head=HeadConfig(width=1, depth=1),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "connectors") % 2**63)
        state = Harmon(shallow).state_dict()
    return {name: value for name, value in state.items() if name.startswith(("proj_in.", "proj_out."))}


def _qwen_tensors(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """All tensors of a Qwen2 folder, of one file or of many."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = [folder / Path(name).name for name in sorted(set(named.values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HarmonError(f"{index} cannot be read ({error}); fetch the folder again.") from None
    else:
        files = [folder / "model.safetensors"]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise ConfigurationError(f"There is no {absent[0]}; name a Qwen2.5-Instruct folder in safetensors.")
    return {name: value for file in files for name, value in read_tensors(file).items()}, files


def _mar_sizes(tensors: Mapping[str, Tensor], file: Path) -> MarConfig:
    try:
        encoder = tensors["encoder_norm.weight"].shape[0]
        decoder = tensors["decoder_norm.weight"].shape[0]
        positions = tensors["diffusion_pos_embed_learned"].shape[1]
        buffers = tensors["encoder_pos_embed_learned"].shape[1] - positions
        hidden = tensors["encoder_blocks.0.mlp.fc1.weight"].shape[0]
        latent = tensors["z_proj.weight"].shape[1]
        classes = tensors["class_emb.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise HarmonError(f"{file} holds no MAR: it lacks {error}; name MAR's checkpoint-last.pth.") from None
    if encoder not in MAR_HEADS or decoder not in MAR_HEADS:
        raise ConfigurationError(
            f"{file} is {encoder} and {decoder} wide, and no published MAR is ({', '.join(map(str, MAR_HEADS))}); "
            "name its sizes with --model FILE."
        )
    return MarConfig(
        encoder_width=encoder,
        encoder_depth=count_numbered(tensors, r"encoder_blocks\.(\d+)\."),
        encoder_heads=MAR_HEADS[encoder],
        decoder_width=decoder,
        decoder_depth=count_numbered(tensors, r"decoder_blocks\.(\d+)\."),
        decoder_heads=MAR_HEADS[decoder],
        mlp_ratio=hidden / encoder,
        native_grid=isqrt(positions),
        latent_channels=latent,
        buffer_size=buffers,
        class_count=classes,
    )


def _head_sizes(tensors: Mapping[str, Tensor]) -> HeadConfig:
    width = tensors.get("diffloss.net.input_proj.bias")
    depth = count_numbered(tensors, r"diffloss\.net\.res_blocks\.(\d+)\.")
    if width is None or not depth:
        raise HarmonError("The MAR checkpoint lacks its diffusion head (diffloss.net.*).")
    return HeadConfig(width=width.shape[0], depth=depth)
