"""The masked autoregressive encoder and decoder, and the diffusion head they carry.

Module and parameter names are those of the released checkpoints (`mar.*`).

Shape letters: B batch, N image positions, M visible positions, P predicted positions, U buffer, C token
channels, S = U + M, D width (the encoder's or the decoder's), H heads, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harmon.model.config import HeadConfig, MarConfig
from harmon.model.head import DiffusionHead
from harmon.model.kept import Past
from pipelines.errors import HarmonError

_EPS = 1e-6  # every LayerNorm of MAR


class Grid(NamedTuple):
    """Tokens of an image, in rows and columns; positions count in raster order."""

    height: int
    width: int

    @property
    def positions(self) -> int:
        return self.height * self.width


def masked_count(positions: int, ratio: float) -> int:
    """Masked positions of a training image: the ratio rounded up."""
    return math.ceil(positions * ratio)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, N, D] at index [B, M] -> [B, M, D]; a batch of one serves all rows."""
    return x.expand(len(index), -1, -1).gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, config: MarConfig) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(config.dropout)

    def _heads_first(self, packed_BSE: Tensor, parts: int) -> Tensor:
        batch, length, _ = packed_BSE.shape
        return packed_BSE.view(batch, length, parts, self.heads, -1).permute(2, 0, 3, 1, 4)

    def forward(
        self,
        x_BSD: Tensor,
        queries_BQD: Tensor | None = None,
        keys_S: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Every position of x_BSD attends to every one, [B, S, D]; or only `queries_BQD` do, [B, Q, D].

        Where `keys_S` (bool, [S], or [B, S] for each row its own) is given, it says which positions serve as keys.
        With a `past` they attend to its other places too, as an earlier pass left them.
        """
        if queries_BQD is None:
            q_BHQd, k_BHSd, v_BHSd = self._heads_first(self.qkv(x_BSD), 3)
        else:
            width = queries_BQD.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            (q_BHQd,) = self._heads_first(F.linear(queries_BQD, weight[:width], bias[:width]), 1)
            k_BHSd, v_BHSd = self._heads_first(F.linear(x_BSD, weight[width:], bias[width:]), 2)
        if past is not None:
            k_BHSd, v_BHSd = past.joined(k_BHSd, v_BHSd)
        dropout = self.attention_dropout if self.training else 0.0
        mixed_BHQd = F.scaled_dot_product_attention(
            q_BHQd,
            k_BHSd,
            v_BHSd,
            attn_mask=None if keys_S is None else keys_S.view(-1, 1, 1, keys_S.shape[-1]),
            dropout_p=dropout,
        )
        out: Tensor = self.proj_drop(self.proj(mixed_BHQd.transpose(1, 2).flatten(2)))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, config: MarConfig) -> None:
        super().__init__()
        hidden = int(width * config.mlp_ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x_BSD)))))
        return out


class Block(nn.Module):
    """A pre-norm transformer block without a mask."""

    def __init__(self, width: int, heads: int, config: MarConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, config)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, config)

    def forward(
        self,
        x_BSD: Tensor,
        read_BP: Tensor | None = None,
        keys_S: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """[B, S, D], or [B, P, D] at positions `read_BP`: the others then serve as keys alone. `keys_S` and
        `past` as in Attention.
        """
        normed_BSD = self.norm1(x_BSD)
        if read_BP is None:
            x_BSD = x_BSD + self.attn(normed_BSD, None, keys_S, past)
        else:
            x_BSD = take(x_BSD, read_BP) + self.attn(normed_BSD, take(normed_BSD, read_BP), keys_S, past)
        out: Tensor = x_BSD + self.mlp(self.norm2(x_BSD))
        return out


class Mar(nn.Module):
    """Encoder, decoder and diffusion head of the image tokens.

    Buffers come first in every sequence here. `class_emb` is part of the released checkpoints and is never
    read.
    """

    def __init__(self, config: MarConfig, head: HeadConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder = config.encoder_width, config.decoder_width
        native = config.native_grid**2
        self.fake_latent = nn.Parameter(torch.empty(1, encoder))
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, config.buffer_size + native, encoder))
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, config.buffer_size + native, decoder))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, native, decoder))
        self.class_emb = nn.Embedding(config.class_count, encoder)
        self.z_proj = nn.Linear(config.token_channels, encoder)
        self.z_proj_ln = nn.LayerNorm(encoder, eps=_EPS)
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, config.encoder_heads, config) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(encoder, eps=_EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder, config.decoder_heads, config) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder, eps=_EPS)
        self.diffloss = DiffusionHead(head, config.token_channels, decoder)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linear layers of zero bias, tables of deviation 0.02, a head that starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for table in (
            self.fake_latent,
            self.encoder_pos_embed_learned,
            self.mask_token,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
            self.class_emb.weight,
        ):
            nn.init.normal_(table, std=0.02)
        self.diffloss.net.reset_parameters()

    def to_tokens(self, latents: Tensor) -> tuple[Tensor, Grid]:
        """[B, channels, h, w] -> tokens [B, N, C] in raster order, and their grid."""
        patch = self.config.patch_size
        batch, channels, height, width = latents.shape
        if channels != self.config.latent_channels or height % patch or width % patch:
            raise HarmonError(
                f"latents {tuple(latents.shape)} do not fit the model: it takes "
                f"{self.config.latent_channels} channels and sides that are multiples of {patch}"
            )
        grid = Grid(height // patch, width // patch)
        blocks = latents.reshape(batch, channels, grid.height, patch, grid.width, patch)
        return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid.positions, -1), grid

    def to_latents(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """The inverse of `to_tokens`."""
        patch = self.config.patch_size
        blocks = tokens_BNC.reshape(len(tokens_BNC), grid.height, grid.width, -1, patch, patch)
        shape = (len(tokens_BNC), -1, grid.height * patch, grid.width * patch)
        return blocks.permute(0, 3, 1, 4, 2, 5).reshape(shape)

    def encode(
        self,
        tokens_BNC: Tensor,
        grid: Grid,
        visible_BM: Tensor | None = None,
        real: int | Tensor | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> Tensor:
        """Visible tokens -> [B, U + M, D]; `visible_BM` int64 in raster order, None for all positions.

        Of the M only the first `real` are, or those that `real` (bool [B, M]) marks (None: all); the others pad the
        shape and are no keys. With `pasts`, one for each block, the tokens are read among others that earlier passes
        have read.
        """
        table_1TD = self._positional_table(self.encoder_pos_embed_learned, grid)
        buffer_1UD, image_1ND = _split(table_1TD, self.config.buffer_size)
        if visible_BM is not None:
            tokens_BNC, image_1ND = take(tokens_BNC, visible_BM), take(image_1ND, visible_BM)
        image_BMD = self.z_proj(tokens_BNC.to(self.z_proj.weight.dtype)) + image_1ND
        buffer_BUD = (self.fake_latent + buffer_1UD).expand(len(tokens_BNC), -1, -1)
        x_BSD = self.z_proj_ln(torch.cat([buffer_BUD, image_BMD], 1))
        keys_S = None
        if isinstance(real, Tensor):
            keys_S = F.pad(real, (self.config.buffer_size, 0), value=True)
        elif real is not None:
            keys_S = torch.arange(x_BSD.shape[1], device=x_BSD.device) < self.config.buffer_size + real
        for block, past in _with_pasts(self.encoder_blocks, pasts):
            x_BSD = block(x_BSD, None, keys_S, past)
        out: Tensor = self.encoder_norm(x_BSD)
        return out

    def decode(
        self,
        x_BSD: Tensor,
        grid: Grid,
        visible_BM: Tensor,
        predicted_BP: Tensor | None = None,
        fill_BTD: Tensor | None = None,
        pasts: Sequence[Past] | None = None,
        real_BM: Tensor | None = None,
    ) -> Tensor:
        """Decoder outputs [B, P, D] at `predicted_BP`, or [B, N, D] at every position.

        x_BSD are the buffers and visible positions of the encoder, already informed by the LLM. Masked
        positions hold the mask token, or those of `fill_BTD` [B, U + N, D] (another image's full encoding,
        for editing). With `pasts`, one for each block, only their places are computed, counted with the buffers
        before them; those of x_BSD and `predicted_BP` must be among them. `real_BM` (bool; None: all) says which
        visible positions are: the others pad the shape, and must be masked positions, which stay so.
        """
        buffers = self.config.buffer_size
        embedded_BSD = self.decoder_embed(x_BSD)
        if real_BM is not None:
            real_BS1 = F.pad(real_BM, (buffers, 0), value=True).unsqueeze(-1)
            embedded_BSD = torch.where(real_BS1, embedded_BSD, self.mask_token.to(embedded_BSD.dtype))
        if fill_BTD is None:
            filled_BTD = self.mask_token.expand(len(x_BSD), buffers + grid.positions, -1).to(embedded_BSD.dtype)
        else:
            filled_BTD = self.decoder_embed(fill_BTD)
        buffer_BU = torch.arange(buffers, device=visible_BM.device).expand(len(x_BSD), -1)
        places_BS1 = torch.cat([buffer_BU, visible_BM + buffers], 1).unsqueeze(-1)
        x_BTD = filled_BTD.scatter(1, places_BS1.expand_as(embedded_BSD), embedded_BSD)
        x_BTD = x_BTD + self._positional_table(self.decoder_pos_embed_learned, grid)
        read_BP = None if predicted_BP is None else predicted_BP + buffers
        if pasts is not None:
            x_BTD = take(x_BTD, pasts[0].places_BQ)
            read_BP = None if read_BP is None else torch.searchsorted(pasts[0].places_BQ, read_BP)
        *inner, last = _with_pasts(self.decoder_blocks, pasts)
        for block, past in inner:
            x_BTD = block(x_BTD, None, None, past)
        block, past = last
        x_BTD = block(x_BTD, read_BP, None, past)
        table_1ND = self._positional_table(self.diffusion_pos_embed_learned, grid)
        if predicted_BP is None:
            image_BND: Tensor = self.decoder_norm(x_BTD[:, buffers:])
            return image_BND + table_1ND
        image_BPD: Tensor = self.decoder_norm(x_BTD)
        return image_BPD + take(table_1ND, predicted_BP)

    def _positional_table(self, table_1TD: Tensor, grid: Grid) -> Tensor:
        """The table for `grid`: its image part resized bilinearly unless native, its buffer part as it is."""
        native = self.config.native_grid
        if grid == (native, native):
            return table_1TD
        buffer_1UD, image_1ND = _split(table_1TD, table_1TD.shape[1] - native**2)
        image_1Dhw = image_1ND.transpose(1, 2).reshape(1, -1, native, native)
        resized_1Dhw = F.interpolate(image_1Dhw, size=tuple(grid), mode="bilinear", align_corners=False)
        return torch.cat([buffer_1UD, resized_1Dhw.flatten(2).transpose(1, 2)], 1)


def _with_pasts(blocks: nn.ModuleList, pasts: Sequence[Past] | None) -> list[tuple[nn.Module, Past | None]]:
    none: list[Past | None] = [None] * len(blocks)
    return list(zip(blocks, none if pasts is None else pasts, strict=True))


def _split(table_1TD: Tensor, buffers: int) -> tuple[Tensor, Tensor]:
    return table_1TD[:, :buffers], table_1TD[:, buffers:]
