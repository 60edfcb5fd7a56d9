"""Recorded outputs of the published model, the model built to replay them, and how they are compared."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.compiled import compile_regions
from harmon.model.config import HarmonConfig, HeadConfig, MarConfig, QwenConfig
from harmon.model.harmon import Harmon
from harmon.model.mar import Grid
from harmon.text import IMAGE_SLOT
from pipelines.errors import HarmonError


@dataclass(frozen=True)
class Line:
    """One compared quantity."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "ABOVE"
        return f"{self.name:<72} {self.error:10.2e} {self.tolerance:8.0e} {verdict}"


BF16_BOUNDS = {
    # bfloat16 keeps 8 bits: each rounding is off by up to 2^-9 = 0.2 %. Through some tens of roundings in a row an
    # output is off by a few per cent of its largest value, and by ten in a single step of the diffusion.
    "non_sampling_rel": 0.15,
    # A gradient gathers the roundings of forward and of backward.
    "gradient_rel": 0.25,
    # The first step of a respaced chain multiplies an error of epsilon by hundreds (the schedule ends at a signal
    # share of 2.4e-9), which the steps after it take back only in part: these two say no more than that the picture
    # is of the right scale. A state or a table in bfloat16 would be off by hundreds.
    "sampling_teacher_forced_iteration_rel": 0.8,
    "sampling_end_to_end_rel": 0.8,
}
"""Tolerances for bfloat16 weights in place of the manifest's."""


class Golden:
    """The recorded data, and the model and autoencoder built from its manifest and weights.

    `compiled` runs the model's regions through torch.compile; `bf16` casts the model's weights (the autoencoder, the
    diffusion's state and its tables stay float32, as in use) and takes BF16_BOUNDS for tolerances.
    """

    def __init__(self, folder: Path, compiled: bool = False, bf16: bool = False) -> None:
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.tensors: dict[str, Tensor] = load_file(folder / "golden.safetensors")
            weights, autoencoder_weights = (load_file(folder / f"{name}.safetensors") for name in ("harmon", "kl16"))
        except (OSError, ValueError, SafetensorError) as error:
            raise HarmonError(f"{folder} holds no golden data ({error}); give a folder with a manifest.json") from error
        self.config: dict[str, Any] = self.manifest["config"]
        self.scalars: dict[str, Any] = self.manifest["scalars"]
        self.model = Harmon(_model_config(self.config)).eval()
        self.model.load_released(weights)
        self.bf16 = bf16
        if bf16:
            self.model.bfloat16()
        if compiled:
            compile_regions(self.model)
        self.autoencoder = KlAutoencoder(_autoencoder_config(self.config)).eval().requires_grad_(False)
        self.autoencoder.load_released(autoencoder_weights)

    def tensor(self, name: str) -> Tensor:
        """Input, draw or output by its full name."""
        if name not in self.tensors:
            raise HarmonError(f"the golden data lacks {name}")
        return self.tensors[name]

    def scalar(self, name: str) -> Any:
        """Output `name` of the manifest."""
        if name not in self.scalars:
            raise HarmonError(f"the golden data lacks out.{name}")
        return self.scalars[name]

    def given(self, name: str) -> Tensor:
        """An input that the model itself would have computed, in the type of its weights."""
        return self.tensor(name).to(self.model.mar.fake_latent.dtype)

    def tolerance(self, kind: str) -> float:
        """The manifest's, which has none for gradients alone; with bfloat16 weights that of BF16_BOUNDS."""
        if self.bf16:
            return BF16_BOUNDS[kind]
        return float(self.manifest["tolerances"]["non_sampling_rel" if kind == "gradient_rel" else kind])

    def ids(self, name: str) -> Tensor:
        """Token ids, with the recording's image placeholder turned into ours."""
        ids = self.tensor(name)
        return ids.masked_fill(ids == self.manifest["image_token_index"], IMAGE_SLOT)

    def latents(self, name: str) -> Tensor:
        """Recorded tokens [B, m, n, C] as latents."""
        tokens = self.tensor(name)
        return self.model.to_latents(tokens.flatten(1, 2), Grid(*tokens.shape[1:3]))

    def as_recorded(self, latents: Tensor) -> Tensor:
        """Latents as recordings have them: tokens [B, m, n, C]."""
        tokens, grid = self.model.to_tokens(latents)
        return tokens.reshape(len(tokens), *grid, -1)

    def encoded(self, name: str) -> Tensor:
        """Latents of recorded pixels, in float64: the autoencoder's rounding counts in its own lines only."""
        return copy.deepcopy(self.autoencoder).double().encode(self.tensor(name))

    def meaning(self, name: str) -> str:
        return str(self.manifest["tensors"][name]["meaning"])

    def line(self, name: str, got: Tensor | float, kind: str = "non_sampling_rel", scale: float | None = None) -> Line:
        """Compare with output or scalar `name`, relative to `scale` if given; whole numbers must be equal."""
        recorded = self.tensors.get(f"out.{name}")
        expected = torch.as_tensor(self.scalar(name)) if recorded is None else recorded
        whole = not expected.is_floating_point()
        tolerance = 0.0 if whole else self.tolerance(kind)
        return Line(name, relative_error(torch.as_tensor(got), expected, scale), tolerance)


def relative_error(got: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """Largest absolute difference over `scale` (the largest expected value); infinite for other shapes."""
    if got.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    difference = (got.detach().double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item() if scale is None else scale
    return difference / largest if largest else (0.0 if difference == 0 else math.inf)


def _model_config(config: Mapping[str, Any]) -> HarmonConfig:
    mar = config["mar"]
    encoder_decoder = {
        f"{part}_{ours}": mar[f"{part}_{theirs}"]
        for part in ("encoder", "decoder")
        for ours, theirs in (("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads"))
    }
    return HarmonConfig(
        llm=QwenConfig(**config["llm"]),
        mar=MarConfig(
            **encoder_decoder,
            mlp_ratio=mar["mlp_ratio"],
            native_grid=mar["img_size"] // mar["vae_stride"] // mar["patch_size"],
            latent_channels=mar["vae_embed_dim"],
            patch_size=mar["patch_size"],
            buffer_size=mar["buffer_size"],
            class_count=mar["class_num"],
            attention_dropout=mar["attn_dropout"],
            dropout=mar["proj_dropout"],
            mask_ratio_min=mar["mask_ratio_min"],
        ),
        head=HeadConfig(
            width=mar["diffloss_w"],
            depth=mar["diffloss_d"],
            batch_mul=mar["diffusion_batch_mul"],
            sampling_steps=str(mar["num_sampling_steps"]).replace(" ", ""),
        ),
        latent_stride=mar["vae_stride"],
        grad_scale=config["grad_scale"],
    )


def _autoencoder_config(config: Mapping[str, Any]) -> KlConfig:
    vae = config["vae"]
    return KlConfig(
        base_channels=vae["ch"],
        channel_multipliers=tuple(vae["ch_mult"]),
        res_blocks=vae["num_res_blocks"],
        latent_channels=vae["embed_dim"],
        scale=config["vae_scale"],
    )
