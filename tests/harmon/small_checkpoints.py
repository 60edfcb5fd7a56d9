"""Checkpoints of every form, of a few thousand parameters, under the true names."""

from collections.abc import Mapping
from pathlib import Path

import torch
from miniature import TOKENIZER, make_autoencoder, tiny_model
from safetensors.torch import save_file
from torch import Tensor

from harmon.convert.contents import EMBEDDING, HEAD
from harmon.convert.released import Named
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.trained import RunDescription, TrainedStage, describe_run

KL = KlConfig(base_channels=32, channel_multipliers=(1, 1, 1, 1, 1), res_blocks=1)
UNUSED = {"loss.logvar": torch.tensor(0.5), "loss.discriminator.weight": torch.arange(6.0).view(2, 3)}


def weights(config: HarmonConfig, seed: int = 0) -> dict[str, Tensor]:
    """A random state dict without the tied head, with no parameter left at zero: a fresh head's output would be."""
    torch.manual_seed(seed)
    state = {name: value + 0.05 * torch.randn_like(value) for name, value in Harmon(config).state_dict().items()}
    del state[HEAD]
    return state


def kl_weights(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return KlAutoencoder(KL).state_dict()


def make_released(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    head: bool = True,
    changes: Mapping[str, Tensor | None] | None = None,
) -> tuple[Path, Named]:
    """harmon.pth and kl16.ckpt, and what must be named beside them; `changes` replaces or (None) removes entries."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_model()
    state = {name: value.to(dtype) for name, value in weights(config).items()}
    if head:
        state[HEAD] = state[EMBEDDING].clone()
    state |= {name: value for name, value in (changes or {}).items() if value is not None}
    torch.save({n: v for n, v in state.items() if (changes or {n: v}).get(n, v) is not None}, folder / "harmon.pth")
    torch.save({"model": kl_weights() | UNUSED, "epoch": 3}, folder / "kl16.ckpt")
    sizes = folder / "sizes.json"
    sizes.write_text(config.model_dump_json())
    return folder / "harmon.pth", Named(tokenizer=TOKENIZER, model=str(sizes))


def make_run(folder: Path, px: int = 64) -> Path:
    """A run folder with one finished stage, its autoencoder the patch latent."""
    config = tiny_model()
    checkpoint = folder / "train" / "stage1-aaaaaaaa" / "checkpoints" / "000010"
    checkpoint.mkdir(parents=True)
    save_file(weights(config), checkpoint / "model.safetensors")
    described = RunDescription(
        model=config,
        stages=(TrainedStage(folder="stage1-aaaaaaaa", px=px),),
        sampling={"ar_steps": 3, "diffusion_steps": "4", "clip_x0": 3.0},
    )
    describe_run(folder, described, TOKENIZER, make_autoencoder(folder / "patch_latent.safetensors"))
    return folder


def true_layout(module: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict of full shapes that takes no memory: every tensor is one number, seen again and again."""
    return {name: torch.zeros(1).expand(value.shape) for name, value in module.state_dict().items()}
