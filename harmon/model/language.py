"""The forward pass of Qwen2 over Transformers' own modules, computing only what Harmon reads.

Weights, names and modules are Transformers' (`Qwen2Model`). This pass gives its outputs without the general
machinery: right-padded rows need no mask under causal attention, the last layer runs at the positions that are
read, and keys and values live in a block of memory that is written in place.

Shape letters: B batch, T sequence length, R positions that are read, Q computed ones, K key positions, H width, G
key-value heads, d width of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from harmon.model.config import QwenConfig
from harmon.model.kept import Past
from harmon.model.packing import Segments, attend_within

_GROWTH = 2  # factor by which full memory grows, so that a long answer copies each key about once


def qwen(config: QwenConfig) -> Any:
    """Transformers' Qwen2 with PyTorch's fused attention, randomly initialised."""
    values = config.model_dump(exclude={"rope_theta"})
    return Qwen2ForCausalLM(
        Qwen2Config(
            **values,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            use_sliding_window=False,
            attn_implementation="sdpa",
        )
    )


class KeyValues:
    """Keys and values of every layer for rows that go on being extended, in memory allocated ahead.

    Nothing is copied on use: a layer writes behind `length` and attends over a view. For use without gradients.
    """

    def __init__(self, llm: Any, rows: int, room: int) -> None:
        """`llm` is a Qwen2Model; `room` positions are allocated, and more when they are used up."""
        config, weight = llm.config, llm.norm.weight
        shape = (2, config.num_hidden_layers, rows, config.num_key_value_heads, room)
        self.memory = torch.zeros(*shape, config.hidden_size // config.num_attention_heads).to(weight)
        self.length = 0

    def first(self, rows: int) -> KeyValues:
        """The first `rows` rows as they stand, on the same memory: extending them leaves this as it is."""
        part = copy.copy(self)
        part.memory = self.memory[:, :, :rows]
        return part

    def reserve(self, extra: int) -> None:
        """Make room for `extra` positions behind `length`."""
        *shape, room, width = self.memory.shape
        if self.length + extra <= room:
            return
        larger = self.memory.new_zeros(*shape, max(_GROWTH * room, self.length + extra), width)
        larger[..., : self.length, :] = self.memory[..., : self.length, :]
        self.memory = larger

    def put(self, layer: int, keys_BGTd: Tensor, values_BGTd: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values behind `length`; returns all of them, [B, G, K, d]."""
        end = self.length + keys_BGTd.shape[2]
        for part, new in zip(self.memory, (keys_BGTd, values_BGTd), strict=True):
            part[layer, :, :, self.length : end] = new
        keys, values = self.memory[:, layer, :, :, :end]
        return keys, values


def read_causally(
    llm: Any,
    x_BTH: Tensor,
    *,
    positions: Tensor | None = None,
    read_BR: Tensor | None = None,
    seen: Tensor | None = None,
    past: KeyValues | None = None,
    segments: Segments | None = None,
) -> Tensor:
    """Hidden states after the final norm: [B, T, H], or [B, R, H] at positions `read_BR` (int64) alone.

    `llm` is a Qwen2Model and x_BTH its input embeddings. Every position sees itself and all before it. Padding
    therefore belongs at the end, where no real position sees it; `seen` (bool [B, K]) excludes keys elsewhere.
    `positions` (int64 [T] or [B, T]) rotate keys and queries, by default 0, 1, ... A `past` is attended to and
    extended by these T positions, the memory of it being written in place; it needs `positions`, and `seen`
    covers the past and the new. `segments`: one row, B = 1, holds several texts, which do not see each other; without
    `seen` or a `past`.
    """
    length = x_BTH.shape[1]
    if positions is None:
        positions = segments.positions_1T if segments else torch.arange(length, device=x_BTH.device)
    rotation = llm.rotary_emb(x_BTH, positions if positions.ndim == 2 else positions.unsqueeze(0))
    before = past.length if past is not None else 0
    if past is not None:
        past.reserve(length)
    single = seen is None and length == 1  # one new position sees every key, so it needs no mask
    mask: Tensor | Segments | None = segments
    if not single and (seen is not None or before):
        mask = _causal_mask(x_BTH, before, seen)
    layers = llm.layers[: llm.config.num_hidden_layers]
    for number, layer in enumerate(layers):
        read = getattr(layer, "read", None) or partial(read_layer, layer)  # training may lay its own around it
        x_BTH = read(x_BTH, rotation, mask, read_BR if number == len(layers) - 1 else None, past, number)
    if past is not None:
        past.length += length
    return norm(llm.norm, x_BTH)


def read_layer(
    layer: Any,
    x_BTH: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask: Tensor | Segments | None,
    read_BR: Tensor | None = None,
    past: KeyValues | None = None,
    number: int = 0,
) -> Tensor:
    """One Qwen2DecoderLayer over [B, T, H], its output at every position or at `read_BR` alone.

    Without a `mask` attention is causal, with Segments causal in each; with a `past`, layer `number` of it is attended
    to and written.
    """
    before = past.length if past is not None else 0
    normed_BTH = norm(layer.input_layernorm, x_BTH)
    keys, values = _keys_values(layer.self_attn, normed_BTH, rotation)
    if past is not None:
        keys, values = past.put(number, keys, values)
    if isinstance(mask, Segments):  # attended to everywhere: the fused kernel takes no choice of queries
        mixed_BTE = attend_within(_queries(layer.self_attn, normed_BTH, rotation), keys, values, mask)
        mixed_BTE = mixed_BTE.transpose(1, 2).flatten(2)
        if read_BR is not None:
            x_BTH, mixed_BTE = _at(x_BTH, read_BR), _at(mixed_BTE, read_BR)
        return _with_mlp(layer, x_BTH + layer.self_attn.o_proj(mixed_BTE))
    single = mask is None and x_BTH.shape[1] == 1  # one new position sees every key
    if read_BR is not None:
        mask = None if single else _rows_of_mask(mask, read_BR, before, keys.shape[2])
        rotation = _at(rotation[0], read_BR), _at(rotation[1], read_BR)
        x_BTH, normed_BTH = _at(x_BTH, read_BR), _at(normed_BTH, read_BR)
    x_BTH = x_BTH + _attend(layer.self_attn, normed_BTH, keys, values, rotation, mask, causal=not single)
    return _with_mlp(layer, x_BTH)


def read_among(
    llm: Any, x_BQH: Tensor, positions_BT: Tensor, seen_BQK: Tensor, prompt: KeyValues, pasts: Sequence[Past]
) -> Tensor:
    """Hidden states after the final norm, [B, Q, H], of image slots read among others that earlier passes have read.

    All T slots stand behind the `prompt` of L positions, and x_BQH at the places of `pasts`, one for each layer.
    Inserting a slot moves those behind it by a position, so keys are kept as they are before rotation and rotated
    here, to `positions_BT` (int64). `seen_BQK` (bool, K = L + T) says what each of the Q attends to.
    """
    rotation = llm.rotary_emb(x_BQH, positions_BT)
    rotation_BQ = _at(rotation[0], pasts[0].places_BQ), _at(rotation[1], pasts[0].places_BQ)
    for number, (layer, past) in enumerate(zip(llm.layers[: llm.config.num_hidden_layers], pasts)):
        attention, normed_BQH = layer.self_attn, norm(layer.input_layernorm, x_BQH)
        new_keys, new_values = (
            _heads(linear, normed_BQH, attention.head_dim) for linear in (attention.k_proj, attention.v_proj)
        )
        keys, values = past.joined(new_keys, new_values)
        prompt_keys, prompt_values = prompt.memory[:, number, :, :, : prompt.length]
        keys = torch.cat([prompt_keys, _rotated(keys, rotation)], 2)
        values = torch.cat([prompt_values, values], 2)
        x_BQH = x_BQH + _attend(attention, normed_BQH, keys, values, rotation_BQ, seen_BQK.unsqueeze(1), causal=False)
        x_BQH = _with_mlp(layer, x_BQH)
    return norm(llm.norm, x_BQH)


def positions_of(seen_BT: Tensor) -> Tensor:
    """Position ids [B, T] int64 where `seen_BT` (bool) says what is real: each row counts its own, from 0."""
    return (seen_BT.long().cumsum(1) - 1).clamp(min=0)


def norm(module: Any, x: Tensor) -> Tensor:
    """Transformers' Qwen2RMSNorm in PyTorch's own kernel."""
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _with_mlp(layer: Any, x_BTH: Tensor) -> Tensor:
    out: Tensor = x_BTH + layer.mlp(norm(layer.post_attention_layernorm, x_BTH))
    return out


def _queries(attention: Any, x_BTH: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    return _rotated(_heads(attention.q_proj, x_BTH, attention.head_dim), rotation)


def _keys_values(attention: Any, x_BTH: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    keys_BGTd = _heads(attention.k_proj, x_BTH, attention.head_dim)
    return _rotated(keys_BGTd, rotation), _heads(attention.v_proj, x_BTH, attention.head_dim)


def _attend(
    attention: Any,
    x_BTH: Tensor,
    keys_BGKd: Tensor,
    values_BGKd: Tensor,
    rotation: tuple[Tensor, Tensor],
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Attention through `mask`; without one, over the keys up to each query where `causal`, else over all."""
    queries = _queries(attention, x_BTH, rotation)
    groups = attention.num_key_value_groups
    if mask is not None and groups > 1:  # CUDA's fused kernels share key heads only where no mask is given
        keys_BGKd, values_BGKd = keys_BGKd.repeat_interleave(groups, 1), values_BGKd.repeat_interleave(groups, 1)
    mixed = F.scaled_dot_product_attention(
        queries, keys_BGKd, values_BGKd, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=mask is None
    )
    out: Tensor = attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return out


def _heads(linear: nn.Linear, x_BTH: Tensor, width: int) -> Tensor:
    out: Tensor = linear(x_BTH)
    return out.view(*x_BTH.shape[:2], -1, width).transpose(1, 2)


def _rotated(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) of [B, heads, T, d], halves paired as in Qwen2."""
    cos, sin = (table.unsqueeze(1) for table in rotation)
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin


def _causal_mask(x_BTH: Tensor, before: int, seen: Tensor | None) -> Tensor:
    """Which keys each of the T new positions sees: bool [B or 1, 1, T, before + T]."""
    length = x_BTH.shape[1]
    mask = torch.ones(length, before + length, dtype=torch.bool, device=x_BTH.device).tril(before)
    if seen is None:
        return mask[None, None]
    itself = torch.eye(length, dtype=torch.bool, device=x_BTH.device)  # or a padded query would see nothing
    return (mask & seen[:, None, None, :]) | F.pad(itself, (before, 0))


def _rows_of_mask(mask: Tensor | None, read_BR: Tensor, before: int, keys: int) -> Tensor:
    """The mask's rows at `read_BR`, bool [B, 1, R, K]."""
    if mask is None:
        places_K = torch.arange(keys, device=read_BR.device)
        return (places_K <= read_BR.unsqueeze(-1) + before).unsqueeze(1)
    index = read_BR[:, None, :, None].expand(-1, -1, -1, keys)
    return mask.expand(len(read_BR), -1, -1, -1).gather(2, index)


def _at(x_BTH: Tensor, read_BR: Tensor) -> Tensor:
    return x_BTH.expand(len(read_BR), -1, -1).gather(1, read_BR.unsqueeze(-1).expand(-1, -1, x_BTH.shape[-1]))
