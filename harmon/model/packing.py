"""Chats end to end in one row of the language model, without padding: positions begin anew at each, and none sees
another.

Shape letters: B chats, L their padded length, T tokens of the packed row, R labelled ones, N texts in it, H heads, G
key-value heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harmon.model.transfer import sent
from harmon.text import IMAGE_SLOT


@dataclass(frozen=True)
class Segments:
    """Texts that lie end to end in one row."""

    lengths: tuple[int, ...]
    """Tokens of each, at least one."""
    ends_N1: Tensor
    """int32: 0, and where each text ends."""
    positions_1T: Tensor
    """int64, from 0 in each text."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Segments:
        """Texts of these lengths; the tensors are made on the CPU and waited for by nobody."""
        ends_N1 = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
        positions_T = torch.arange(sum(lengths)) - ends_N1[:-1].repeat_interleave(torch.tensor(lengths))
        ends_N1, positions_1T = (sent(one, torch.device(device)) for one in (ends_N1.int(), positions_T.unsqueeze(0)))
        return cls(tuple(lengths), ends_N1, positions_1T)


@dataclass(frozen=True)
class PackedChats:
    """What of right-padded chats has to be read, and where in the packed row their labels are predicted."""

    real_BL: Tensor
    """bool: the places that make up the packed row, chat by chat."""
    lengths: tuple[int, ...]
    """Places of each chat in it."""
    read_R: Tensor
    """int64: places of the packed row at which a label is predicted."""
    wanted_R: Tensor
    """int64: those labels."""
    rows_R: Tensor
    """int64: the chat of each."""
    counts_B: Tensor
    """int64: labels of each chat."""


def pack(input_ids: Tensor, labels: Tensor) -> PackedChats:
    """Pack chats as `Harmon.image_to_text_loss` takes them (int64 [B, L] both).

    A chat is read up to its last image slot or the place that predicts its last label: behind these stand only its
    last label itself and padding, which no loss depends on.
    """
    targets_BL = F.pad(labels[:, 1:], (0, 1), value=-1)
    labelled_BL = targets_BL >= 0
    places_L = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    lengths_B = ((labelled_BL | (input_ids == IMAGE_SLOT)) * places_L).amax(1).clamp(min=1)
    real_BL = places_L <= lengths_B.unsqueeze(1)
    read_R = labelled_BL[real_BL].nonzero()[:, 0]
    rows_R = labelled_BL.nonzero()[:, 0]
    lengths = tuple(lengths_B.tolist())
    return PackedChats(real_BL, lengths, read_R, targets_BL[labelled_BL], rows_R, labelled_BL.sum(1))


def attend_within(queries_1HTd: Tensor, keys_1GTd: Tensor, values_1GTd: Tensor, segments: Segments) -> Tensor:
    """Causal attention inside each text, [1, H, T, d], without a mask of T x T.

    On CUDA in 16 bits one fused kernel reads all texts (FlashAttention's, for variable lengths). Elsewhere they are
    read one after the other: faster than one call with a mask, which computes what it hides (benchmarks.packing).
    """
    heads = queries_1HTd, keys_1GTd, values_1GTd
    if queries_1HTd.device.type == "cuda" and (small := _small(queries_1HTd)) is not None:
        queries_1HTd, keys_1GTd, values_1GTd = (one.to(small) for one in heads)
        return _fused(queries_1HTd, keys_1GTd, values_1GTd, segments)
    texts = zip(*(one.split_with_sizes(segments.lengths, 2) for one in heads), strict=True)
    read = [F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in texts]
    return torch.cat(read, 2)


def _small(x: Tensor) -> torch.dtype | None:
    """The 16-bit type that attention of `x` runs in, autocast considered; None: a larger one."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def _fused(queries_1HTd: Tensor, keys_1GTd: Tensor, values_1GTd: Tensor, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # young: torch 2.10 has it, and generation does without

    queries_THd, keys_TGd, values_TGd = (one[0].transpose(0, 1) for one in (queries_1HTd, keys_1GTd, values_1GTd))
    longest = max(segments.lengths)
    mixed_THd = varlen_attn(
        queries_THd, keys_TGd, values_TGd, segments.ends_N1, segments.ends_N1, longest, longest,
        window_size=(-1, 0), enable_gqa=True,  # itself and all before it
    )  # fmt: skip
    assert isinstance(mixed_THd, Tensor)
    return mixed_THd.transpose(0, 1).unsqueeze(0)
