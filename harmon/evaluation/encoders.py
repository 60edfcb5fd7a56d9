"""The frozen encoders that the paper compares (Figure 2, Table 6), each as a map of features over a picture.

Every encoder takes pictures [B, 3, px, px] in [-1, 1] and gives [B, D, h, w]: a head pools over the positions, and a
map of what the head looks at lies over the same positions.

MAR was trained with ImageNet's labels in its buffers. Here its buffers always hold the null embedding
(`fake_latent`), so no label reaches it; but its weights have seen labels, which a probe on ImageNet profits from and
an encoder trained on pictures alone does not.

Shape letters: B batch, U buffers, N positions, S = U + N, D feature width, h w grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harmon.convert.autoencoders import Autoencoder, empty_autoencoder
from harmon.convert.released import read_kl
from harmon.convert.start import read_mar
from harmon.latents import load_autoencoder, load_picture_encoder
from harmon.model.config import HarmonConfig
from harmon.model.harmon import part_of
from harmon.model.mar import Grid, Mar
from harmon.model.vqgan import Vqgan
from harmon.tower import Tower
from harmon.trained import Trained
from pipelines.errors import ConfigurationError

Pooling = Literal["mean", "flat", "buffers"]
"""What becomes of a map before the head: the mean over positions (MAE's global pool), all of it as one vector, or (of
MAR alone) the mean of the buffers in place of the positions."""


Network = TypeVar("Network", bound=nn.Module)
DEMO = Path(__file__).parents[1] / "parts" / "demo"


class Encoder(Protocol):
    """A frozen encoder."""

    @property
    def name(self) -> str:
        """As the report calls it."""

    @property
    def stand_in(self) -> str:
        """What it stands in for and why its numbers are its own; empty for the real thing."""

    @property
    def px(self) -> int:
        """Side of the pictures it takes."""

    @property
    def key(self) -> str:
        """Names its weights and what else its features depend on."""

    def maps(self, images: Tensor) -> Tensor:
        """[B, 3, px, px] in [-1, 1] -> [B, D, h, w] float32."""


@dataclass(frozen=True, eq=False)
class MarEncoder:
    """MAR's encoder over an autoencoder's latents, all positions visible, the null embedding in the buffers."""

    name: str
    mar: Mar
    autoencoder: Autoencoder
    px: int
    stand_in: str = ""
    inform: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """What a language model adds to encoder outputs [B, S, D] before MAR's decoder; None: MAR was trained alone."""

    @property
    def key(self) -> str:
        state = self.mar.state_dict()
        own = [name for name in state if part_of(f"mar.{name}") == "encoder" and not name.startswith("class_emb")]
        return weights_hash([(name, state[name]) for name in own] + list(self.autoencoder.state_dict().items()))

    def tokens(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Pictures as tokens [B, N, C] in raster order, and their grid."""
        return self.mar.to_tokens(self.autoencoder.encode(images))

    def maps(self, images: Tensor) -> Tensor:
        tokens_BNC, grid = self.tokens(images)
        return as_map(self.mar.encode(tokens_BNC, grid), grid, self.mar.config.buffer_size).float()

    def buffers(self, images: Tensor) -> Tensor:
        """The buffers' outputs as a map of one row, [B, D, 1, U]."""
        x_BSD = self.mar.encode(*self.tokens(images))
        return x_BSD[:, : self.mar.config.buffer_size].transpose(1, 2).unsqueeze(2).float()


@dataclass(frozen=True, eq=False)
class LatentEncoder:
    """An autoencoder's latents, as MAR reads them: the mode, scaled."""

    name: str
    autoencoder: Autoencoder
    px: int
    stand_in: str = ""

    @property
    def key(self) -> str:
        return weights_hash(self.autoencoder.state_dict().items())

    def maps(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images).float()


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """The image tower of a CLIP or SigLIP model: its patch tokens behind the last norm.

    No class token, no pooling of its own. It sees the same centre square as the other encoders, at its own size and in
    its own normalisation.
    """

    name: str
    tower: Tower
    stand_in: str = ""

    @property
    def px(self) -> int:
        return self.tower.px

    @property
    def key(self) -> str:
        return weights_hash(self.tower.visual.state_dict().items())

    def maps(self, images: Tensor) -> Tensor:
        return self.tower.encode(images)


@dataclass(frozen=True, eq=False)
class VqganEncoder:
    """The vectors of VQGAN's codebook that stand for a picture: what a model that reads its tokens sees."""

    name: str
    vqgan: Vqgan
    px: int
    stand_in: str = ""

    @property
    def key(self) -> str:
        return weights_hash(self.vqgan.state_dict().items())

    def maps(self, images: Tensor) -> Tensor:
        return self.vqgan.encode(images).float()


def as_map(x_BSD: Tensor, grid: Grid, buffers: int) -> Tensor:
    """Encoder outputs [B, U + N, D], buffers first -> [B, D, h, w]: the buffers, which lie nowhere, are dropped."""
    x_BDS = x_BSD[:, buffers:].transpose(1, 2)
    return x_BDS.reshape(*x_BDS.shape[:2], *grid)


def pooled(encoder: Encoder, images: Tensor, pooling: Pooling) -> Tensor:
    """What a head reads, [B, F]. Raises ConfigurationError for buffers of an encoder that has none."""
    if pooling == "buffers":
        if not isinstance(encoder, MarEncoder) or not encoder.mar.config.buffer_size:
            raise ConfigurationError(f"{encoder.name} has no buffers; pool over `mean` or `flat`.")
        return encoder.buffers(images).mean((2, 3))
    return pooled_map(encoder.maps(images), pooling)


def pooled_map(maps: Tensor, pooling: Pooling) -> Tensor:
    """A map [B, D, h, w] as the head reads it, [B, F]. Raises ConfigurationError for buffers, which no map holds."""
    if pooling == "buffers":
        raise ConfigurationError("Buffers lie nowhere in the picture; pool over `mean` or `flat` for a map.")
    return maps.mean((2, 3)) if pooling == "mean" else maps.flatten(1)


def trained_encoders(trained: Trained, name: str, px: int | None = None) -> list[Encoder]:
    """The MAR encoder and the autoencoder of a Harmon checkpoint; `px` as `native_px` where left out."""
    mar = trained.model.mar
    px = px or native_px(mar, trained.autoencoder.stride)
    return [
        MarEncoder(f"MAR of {name}", mar, trained.autoencoder, px, inform=_through_llm(trained)),
        LatentEncoder(f"VAE of {name}", trained.autoencoder, px, _named_stand_in(trained.autoencoder)),
    ]


def pretrained_encoders(mar: Path, vae: Path, px: int | None = None, model: str | None = None) -> list[Encoder]:
    """MAR's own `checkpoint-last.pth` with `kl16.ckpt`: what the paper probes. `model` and errors as
    `harmon.convert.start.read_mar`.
    """
    sizes, head, tensors = read_mar(mar, model)
    network = Mar(sizes, head)
    network.load_state_dict(tensors)
    kl_sizes, weights, _ = read_kl(vae)
    autoencoder = empty_autoencoder(kl_sizes)
    autoencoder.load_state_dict(weights)
    px = px or native_px(network, autoencoder.stride)
    return [
        MarEncoder(f"MAR ({mar.name})", frozen(network), frozen(autoencoder), px),
        LatentEncoder(f"VAE ({vae.name})", autoencoder, px),
    ]


def demo_encoders(px: int | None = None) -> list[Encoder]:
    """The demo's own MAR, the patch latent that it reads, and the demo's small KL-16."""
    config = HarmonConfig.from_file(DEMO / "harmon.yaml")
    mar = Mar(config.mar, config.head)
    weights = load_file(DEMO / "mar.safetensors")
    mar.load_state_dict({name.removeprefix("mar."): value for name, value in weights.items()})
    latent = frozen(load_autoencoder(DEMO / "patch_latent.safetensors"))
    kl = frozen(load_autoencoder(DEMO / "kl.safetensors"))
    px = px or native_px(mar, latent.stride)
    small_mar = "the demo’s MAR of 1.4 million parameters, trained on scenes, in place of MAR-B trained on ImageNet"
    small_kl = "the demo’s KL-16 of 1.1 million parameters, trained on scenes, in place of MAR’s kl16.ckpt"
    return [
        MarEncoder("MAR (demo)", frozen(mar), latent, px, small_mar),
        LatentEncoder("Patch latent (demo)", latent, px, _named_stand_in(latent)),
        LatentEncoder("VAE (demo)", kl, px, small_kl),
    ]


def clip_encoder(architecture: str, weights: Path | None, seed: int = 0) -> ClipEncoder:
    """open_clip's network `architecture`, or the one that a .json file of its layout describes; without `weights`
    (.safetensors, or .pt read without unpickling code) random ones, which it says in its name.

    Raises ConfigurationError where there is no such network, or the weights are absent or of another network.
    """
    tower = frozen(Tower.named(architecture, weights, seed))
    plain = tower.name.removesuffix(", random")
    stand_in = "" if weights else f"random weights in place of a trained {plain}: a floor, not what CLIP or SigLIP can"
    return ClipEncoder(tower.name, tower, stand_in)


def vqgan_encoder(weights: Path, px: int | None = None) -> VqganEncoder:
    """The VQGAN in a file that `python -m harmon.seeing vqgan` wrote; at 256 px where `px` is left out.

    Raises ConfigurationError where the file holds another encoder.
    """
    vqgan = load_picture_encoder(weights)
    if not isinstance(vqgan, Vqgan):
        raise ConfigurationError(f"{weights} holds {vqgan.name} and no VQGAN; write it with python -m harmon.seeing.")
    return VqganEncoder(vqgan.name, frozen(vqgan), px or 256, vqgan.name if "stand-in" in vqgan.name else "")


def native_px(mar: Mar, stride: int) -> int:
    """Side of the pictures for which MAR's positional tables need no resizing: 256 for the published sizes."""
    return mar.config.native_grid * mar.config.patch_size * stride


def move(encoder: Encoder, device: str) -> None:
    """Its networks to `device`."""
    for part in vars(encoder).values():
        if isinstance(part, nn.Module):
            part.to(device)


def frozen(network: Network) -> Network:
    """In evaluation mode, and without gradients."""
    return network.eval().requires_grad_(False)


def weights_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of names, types, shapes and values, whatever device they are on."""
    found = hashlib.sha256()
    for name, value in sorted(tensors):
        stored = value.detach().cpu().contiguous()
        found.update(f"{name} {stored.dtype} {tuple(stored.shape)}\n".encode())
        found.update(stored.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _named_stand_in(autoencoder: Autoencoder) -> str:
    return autoencoder.name if "stand-in" in autoencoder.name else ""


def _through_llm(trained: Trained) -> Callable[[Tensor], Tensor]:
    """Encoder outputs as Harmon's decoder gets them: informed by the LLM behind the empty prompt of guidance."""
    model = trained.model
    ids = torch.tensor([trained.text.generation_prompt(None)])
    buffers = model.config.mar.buffer_size

    def inform(x_BSD: Tensor) -> Tensor:
        image_BSH = model.proj_in(torch.cat([x_BSD[:, buffers:], x_BSD[:, :buffers]], 1))
        ids_BL = ids.to(x_BSD.device).expand(len(x_BSD), -1)
        return model.inform(x_BSD, model.read_after_text(ids_BL, torch.ones_like(ids_BL), image_BSH))

    return inform
