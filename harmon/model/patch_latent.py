"""A fixed linear patch latent: the demo's stand-in for the KL-16 autoencoder.

Principal components of square patches hold colour and coarse shape at sizes where a convolutional autoencoder
trained for a minute does not. It has the autoencoder's interface and says in its `name` that it is a
stand-in.

Shape letters: B batch, C latent channels, P values of one patch (3 * stride * stride), h w latent grid, n
patches.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.errors import HarmonError


class PatchLatent(nn.Module):
    """Linear map between image patches and latents, fixed once fitted.

    `mean` [P], `basis` [C, P] (orthonormal rows) and `scale` [C], all float32; values of a patch are ordered
    (colour, row, column).
    """

    name = "patch-latent (fixed linear PCA stand-in for KL-16)"
    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        super().__init__()
        channels, values = basis.shape
        self.channels = channels
        self.stride = math.isqrt(values // 3)
        if 3 * self.stride**2 != values or mean.shape != (values,) or scale.shape != (channels,):
            raise HarmonError(
                f"a patch latent of mean {tuple(mean.shape)}, basis {tuple(basis.shape)} and scale "
                f"{tuple(scale.shape)} does not fit together; fit it again with PatchLatent.fit"
            )
        self.register_buffer("mean", mean.float())
        self.register_buffer("basis", basis.float())
        self.register_buffer("scale", scale.float())

    @classmethod
    def fit(cls, images: Tensor, channels: int, stride: int) -> PatchLatent:
        """Principal components of the patches of `images` [B, 3, H, W] in [-1, 1].

        Component i is divided by the square root of its standard deviation, so that strong components stay
        somewhat stronger, and then all by one factor that gives the latents of `images` unit deviation.
        """
        patches_nP = _patches(images, stride).flatten(0, 2).double()
        mean_P = patches_nP.mean(0)
        centred_nP = patches_nP - mean_P
        _, vectors = torch.linalg.eigh(centred_nP.T @ centred_nP / len(centred_nP))
        basis_CP = vectors.flip(1).T[:channels]
        peak_C1 = basis_CP.gather(1, basis_CP.abs().argmax(1, keepdim=True))
        basis_CP = basis_CP * peak_C1.sign()  # an eigenvector's sign is arbitrary; fix it
        latents_nC = centred_nP @ basis_CP.T
        scale_C = latents_nC.std(0).clamp_min(1e-6) ** -0.5
        scale_C = scale_C / (latents_nC * scale_C).std()
        return cls(mean_P, basis_CP, scale_C)

    @classmethod
    def from_file(cls, path: str | Path) -> PatchLatent:
        """Read what `save` wrote; HarmonError where the file is no patch latent."""
        try:
            tensors = {key.removeprefix("vae."): value for key, value in load_file(path).items()}
            return cls(tensors["mean"], tensors["basis"], tensors["scale"])
        except (OSError, SafetensorError, KeyError) as error:
            raise HarmonError(f"{path} is no patch latent ({error}); write one with PatchLatent.save") from error

    def save(self, path: str | Path) -> None:
        """Write the three tensors as safetensors, the stand-in's name in the metadata."""
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, path, metadata={"name": self.name})

    def side(self, px: int) -> int:
        """Rows and columns of the latents of a picture of `px` a side."""
        return px // self.stride

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float32 in [-1, 1] -> latents [B, C, H / stride, W / stride] float32."""
        latents_BhwC = (_patches(images.float(), self.stride) - self.mean) @ self.basis.T * self.scale
        return latents_BhwC.permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, h * stride, w * stride] float32, not clamped."""
        latents_BhwC = latents.float().permute(0, 2, 3, 1)
        patches_BhwP = (latents_BhwC / self.scale) @ self.basis + self.mean
        batch, height, width, _ = patches_BhwP.shape
        pixels = patches_BhwP.view(batch, height, width, 3, self.stride, self.stride)
        return pixels.permute(0, 3, 1, 4, 2, 5).reshape(batch, 3, height * self.stride, width * self.stride)


def _patches(images: Tensor, stride: int) -> Tensor:
    """[B, 3, H, W] -> [B, H / stride, W / stride, P]; HarmonError unless `stride` divides both."""
    batch, colours, height, width = images.shape
    if height % stride or width % stride:
        raise HarmonError(
            f"an image of {height} x {width} pixels cannot be cut into patches of {stride}; resize it first"
        )
    blocks = images.reshape(batch, colours, height // stride, stride, width // stride, stride)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)
