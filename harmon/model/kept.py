"""Keys and values that a transformer's layers keep from pass to pass, when only some places are computed anew.

Shape letters: B rows, A heads, T places, Q places of a pass, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """What one layer keeps, as one pass sees it: `memory` [2, B, A, T, d], of which it writes `places_BQ` (int64,
    ascending).
    """

    memory: Tensor
    places_BQ: Tensor

    def joined(self, keys_BAQd: Tensor, values_BAQd: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this pass's keys and values; returns those of all places, [B, A, T, d]."""
        index = self.places_BQ[:, None, :, None].expand_as(keys_BAQd)
        keys, values = self.memory
        return keys.scatter_(2, index, keys_BAQd), values.scatter_(2, index, values_BAQd)


class Kept:
    """The memory of a whole stack of layers. For use without gradients."""

    def __init__(self, layers: int, rows: int, heads: int, places: int, width: int, like: Tensor) -> None:
        """`like` has the device and type; `width` is a head's."""
        self.memory = torch.zeros(layers, 2, rows, heads, places, width, device=like.device, dtype=like.dtype)

    def at(self, places_BQ: Tensor, length: int) -> list[Past]:
        """For each layer, a pass that computes `places_BQ` of the first `length` places, and the first B rows."""
        return [Past(memory[:, : len(places_BQ), :, :length], places_BQ) for memory in self.memory]
