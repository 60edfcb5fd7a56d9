"""Tensors on their way to the training device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`, without waiting for it.

    A CUDA device reads pinned memory by itself; from any other the host would wait for the copy.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
