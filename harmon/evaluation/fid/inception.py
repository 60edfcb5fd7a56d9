"""The Inception networks that FIDs are measured with. The literature mixes them up, and their numbers differ.

    torch-fidelity   TensorFlow's Inception of 2015; pictures go in as they are and are resized to 299 px as
                     TensorFlow 1 did (bilinear, no smoothing). The graph is torch-fidelity's own class.
    clean-fid        the same network and weights; pictures are resized to 299 px by Pillow, bicubic with smoothing, in
                     floating point: clean-fid's `mode="clean"`
    torchvision      torchvision's Inception v3, bilinear: what pytorch-fid measured before it had TensorFlow's weights

clean-fid ships the same weights as a TorchScript archive, which is not needed here. Shape letters: B batch, F features.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.storage import file_sha256

VERSION = 1  # raised when the same weights would give other features
SIDE = 299
FEATURES = 2048
MOST_BYTES = 256 << 20  # of a weights file; the published ones have about 100 million
Name = Literal["torch-fidelity", "clean-fid", "torchvision"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Published:
    """A file of weights."""

    url: str
    sha256: str
    """As much of it as is known."""


# The whole hash stands in several public repositories that pin this file (95,628,359 bytes), and begins as its name
# ends; pytorch-fid publishes the same file as pt_inception-2015-12-05-6726825d.pth.
TENSORFLOW = Published(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
# Eight digits are all that is known here: torchvision's own loader compares no more.
TORCHVISION = Published("https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth", "0cc3c7bd")
PUBLISHED: dict[Name, Published] = {
    "torch-fidelity": TENSORFLOW,
    "clean-fid": TENSORFLOW,
    "torchvision": TORCHVISION,
}


@dataclass(frozen=True, eq=False)
class Extractor:
    """A network with its weights, and how pictures are brought to 299 px for it."""

    name: Name
    weights_sha256: str
    trunk: nn.Module
    device: str = "cpu"

    @property
    def published(self) -> bool:
        """Whether the weights are the published ones; otherwise its numbers compare with no others."""
        return self.weights_sha256.startswith(PUBLISHED[self.name].sha256)

    @property
    def label(self) -> str:
        """As a report calls it."""
        other = "" if self.published else f", not the published weights but {self.weights_sha256[:12]}"
        return self.name + other

    @property
    def key(self) -> str:
        """sha256 of what decides a feature, besides the picture handed over."""
        return sha256_hex(canonical_json([VERSION, self.name, self.weights_sha256]))

    def input(self, picture: NDArray[np.uint8]) -> Tensor:
        """A picture uint8 [H, W, 3] as the network takes it, [3, 299, 299] about 0."""
        if self.name == "clean-fid":
            return (torch.from_numpy(_clean(picture)) - 128) / 128
        x_1CHW = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).float()
        resized: Tensor
        if self.name == "torchvision":
            resized = nn.functional.interpolate(x_1CHW / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
            return resized[0] * 2 - 1
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(x_1CHW, size=(SIDE, SIDE), align_corners=False)
        return (resized[0] - 128) / 128

    def features(self, inputs: Sequence[Tensor]) -> NDArray[np.float32]:
        """Features [B, 2048] of what `input` made, in 32 bits."""
        with torch.inference_mode():
            found = self.trunk(torch.stack(list(inputs)).to(self.device)).flatten(1)
        values: NDArray[np.float32] = found.float().cpu().numpy()
        return values


def load_extractor(
    name: Name, weights: Path | None = None, device: str = "cpu", *, unpublished: bool = False
) -> Extractor:
    """The extractor `name` with the weights of a file, or those that torch's hub folder has or can fetch.

    Weights other than the published ones are refused unless `unpublished` says that they are meant; the extractor then
    says so in its label. Files are read without unpickling code.

    Raises:
        ConfigurationError: there is no such extractor or file, it is another file than the published one, or
            torch-fidelity is not installed.
        HarmonError: the weights cannot be fetched, or are none of this network.
    """
    if name not in NAMES:
        raise ConfigurationError(f"There is no FID extractor {name!r}; there are {', '.join(NAMES)}.")
    path = weights or _fetched(PUBLISHED[name])
    if not path.is_file():
        raise ConfigurationError(f"The weights {path} of {name} are absent; fetch {PUBLISHED[name].url}.")
    digest = file_sha256(path)
    if not (unpublished or digest.startswith(PUBLISHED[name].sha256)):
        raise ConfigurationError(
            f"{path} has the sha256 {digest}, where {PUBLISHED[name].url} begins with {PUBLISHED[name].sha256}; "
            "fetch that file, or say that other weights are meant."
        )
    state = _state(path)
    try:
        trunk = _torchvision(state) if name == "torchvision" else _tensorflow(state)
    except RuntimeError as problem:
        raise HarmonError(f"{path} does not hold {name}'s Inception: {str(problem).splitlines()[0]}") from None
    return Extractor(name, digest, trunk.eval().requires_grad_(False).to(device), device)


def _tensorflow(state: dict[str, Any]) -> nn.Module:
    """torch-fidelity's graph up to the pooled features; it takes pictures that are resized and about 0 already."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigurationError(
            "FID needs torch-fidelity, which is not installed; run pip install -c constraints.txt -e '.[eval]'."
        ) from None
    # The class unpickles any file whole; what it gets here are tensors that were read without running code.
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=stored)
    return nn.Sequential(*(child for name, child in network.named_children() if name != "fc"))


def _torchvision(state: dict[str, Any]) -> nn.Module:
    """torchvision's graph up to the pooled features, without its side exit."""
    from torchvision.models import Inception3

    network = Inception3(aux_logits=True, init_weights=False)
    network.load_state_dict(state)
    left_out = ("AuxLogits", "dropout", "fc")
    return nn.Sequential(*(child for name, child in network.named_children() if name not in left_out))


def _clean(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each colour resized to 299 px in floating point, [3, 299, 299] from 0 to 255."""
    channels = [
        np.asarray(Image.fromarray(picture[:, :, c].astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    resized: NDArray[np.float32] = np.clip(np.stack(channels), 0, 255).astype(np.float32)
    return resized


def _state(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_BYTES:
        raise HarmonError(f"{path} has more than {MOST_BYTES:,} bytes, which no Inception has; name another file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # unpickling raises whatever it likes
        raise HarmonError(f"{path} cannot be read as weights ({type(problem).__name__}); fetch it anew.") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise HarmonError(f"{path} holds no weights by name; fetch it anew.")
    return state


def _fetched(published: Published) -> Path:
    """The file in torch's hub folder, fetched if need be; it never stands there before its hash agrees."""
    name = published.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(published.url, str(path), published.sha256, progress=False)
        except (OSError, RuntimeError) as problem:
            raise HarmonError(
                f"{published.url} could not be fetched ({problem}); copy it to {path}, or name a file of it."
            ) from None
    return path
