"""The image tower of a CLIP or SigLIP network as an encoder of maps, and the file that keeps one.

open_clip builds it; a file of ours holds the tower's weights with the network's layout, so that it can be read without
a name that open_clip knows.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.errors import ConfigurationError, HarmonError

_LAYOUT, _NORMALISATION = "layout", "normalisation"
"""Metadata keys: the network's layout, as open_clip writes it in JSON; mean and deviation of its pixels by colour."""
Normalisation = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of red, green and blue, of levels from 0 to 1."""


class Tower(nn.Module):
    """Patch tokens behind the last norm; no class token, no pooling of its own.

    It sees pictures at its own size `px`, in its own normalisation, whatever their size: its map is always `grid` a
    side. Used frozen.
    """

    stride = 1  # any side will do
    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, visual: nn.Module, layout: dict[str, Any], normalisation: Normalisation) -> None:
        super().__init__()
        self.name, self.visual, self.layout, self.normalisation = name, visual, layout, normalisation
        size: Any = visual.image_size
        self.px = int(size if isinstance(size, int) else size[0])
        for buffer, values in zip(("mean", "deviation"), normalisation, strict=True):
            self.register_buffer(buffer, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        with torch.no_grad():
            _, self.channels, self.grid, _ = self.encode(torch.zeros(1, 3, self.px, self.px)).shape

    @classmethod
    def named(cls, architecture: str, weights: Path | None, seed: int = 0) -> Self:
        """The tower of open_clip's network `architecture`, or of the one that a .json file of its layout describes;
        without `weights` (.safetensors, or .pt read without unpickling code) random ones, which it says in its name.

        Raises ConfigurationError where there is no such network, or the weights are absent or of another network.
        """
        import open_clip

        name = architecture
        if architecture.endswith(".json"):
            if not Path(architecture).is_file():
                raise ConfigurationError(f"There is no {architecture}; name a network of open_clip or a file of one.")
            open_clip.add_model_config(Path(architecture))
            name = Path(architecture).stem
        if name not in open_clip.list_models():
            raise ConfigurationError(f"open_clip knows no network {name!r}; open_clip.list_models() lists them.")
        if weights and not weights.is_file():
            raise ConfigurationError(f"The weights {weights} of {name} are absent; fetch them, or leave the file out.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                model = open_clip.create_model(
                    name, pretrained=str(weights) if weights else None, pretrained_image=False, weights_only=True
                )
            except RuntimeError as problem:
                raise ConfigurationError(f"{weights} does not hold {name}: {str(problem).splitlines()[0]}") from None
        named = name if weights else f"{name}, random"
        return cls(named, model.visual.eval(), open_clip.get_model_config(name), _normalisation_of(name))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises HarmonError where the file is no tower."""
        import open_clip

        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                layout, normalisation = json.loads(told[_LAYOUT]), json.loads(told[_NORMALISATION])
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            with tempfile.TemporaryDirectory() as folder:  # open_clip takes layouts from files alone
                layouts = Path(folder) / "tower-of-a-file.json"
                layouts.write_text(json.dumps(layout))
                open_clip.add_model_config(layouts)
                with torch.random.fork_rng(devices=[]):
                    visual = open_clip.create_model("tower-of-a-file", pretrained_image=False).visual.eval()
            visual.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise HarmonError(
                f"{path} is no tower ({str(error).splitlines()[0]}); write one with Tower.save."
            ) from error
        return cls(told["name"], visual, layout, normalisation)

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the network's name and layout."""
        tensors = {key: value.contiguous() for key, value in self.visual.state_dict().items()}
        told = {_LAYOUT: json.dumps(self.layout), _NORMALISATION: json.dumps(self.normalisation)}
        save_file(tensors, path, metadata={"name": self.name, **told})

    def side(self, px: int) -> int:
        """Rows and columns of the map, whatever `px` is."""
        return int(self.grid)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, channels, grid, grid] float32."""
        if images.shape[2:] != (self.px, self.px):
            images = F.interpolate(images, (self.px, self.px), mode="bicubic", antialias=True, align_corners=False)
        visual: Any = self.visual
        found = visual.forward_intermediates(
            ((images + 1) / 2 - self.mean) / self.deviation,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
        )
        maps: Tensor = found["image_intermediates"][-1]
        return maps.float()


def _normalisation_of(network: str) -> Normalisation:
    """That of the network's published weights. open_clip applies it to weights that it fetches itself; to those of a
    file it would apply CLIP's, which SigLIP's differ from.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(network)
    told = open_clip.get_pretrained_cfg(network, tags[0]) if tags else {}
    return told.get("mean", open_clip.OPENAI_DATASET_MEAN), told.get("std", open_clip.OPENAI_DATASET_STD)
