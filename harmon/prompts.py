"""Prompts of different lengths as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(prompts: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as right-padded ids [B, L] int64 and the mask [B, L] bool of real tokens."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[*prompt, *[fill] * (length - len(prompt))] for prompt in prompts], dtype=torch.int64)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids.to(device), (torch.arange(length) < lengths[:, None]).to(device)
