"""Harmon: one masked autoregressive encoder for seeing and drawing, a language model between its halves.

arXiv 2503.21979. Module and parameter names are those of the released checkpoints.

Shape letters: B batch, L text length, N image positions, M visible positions, P masked positions, U buffer,
S = M + U, D encoder width, Z decoder width, H LLM width, C token channels, R timesteps per position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harmon.model.config import HarmonConfig
from harmon.model.gradient import ScaleGradient
from harmon.model.kept import Past
from harmon.model.language import qwen, read_causally
from harmon.model.mar import Grid, Mar, take
from harmon.model.packing import Segments, pack
from harmon.model.transfer import sent
from harmon.text import IMAGE_SLOT
from pipelines.errors import HarmonError

Part = Literal["encoder", "decoder", "llm"]
_Read = tuple[Tensor, Tensor, Tensor, Tensor]
"""Where labels are predicted: hidden states [R, H], the labels [R], the row of each [R]; and labels a row [B]."""


@dataclass(frozen=True)
class LossSum:
    """A loss as a sum, to be divided by the whole step's count.

    `total` and `count` are float32 scalars over the rows with their weights; `count` counts masked positions
    or labelled tokens. `per_sample` [B] holds each row's own sum before its weight, detached.
    """

    total: Tensor
    count: Tensor
    per_sample: Tensor


def part_of(name: str) -> Part:
    """Which of the paper's three trainable parts a parameter of `Harmon` belongs to (paper, Table 1)."""
    if name.startswith("llm."):
        return "llm"
    if name.startswith("proj_out.") or name.startswith(_DECODER_PREFIXES):
        return "decoder"
    if name.startswith(("mar.", "proj_in.", "proj_understanding.")):
        return "encoder"
    raise HarmonError(f"{name!r} is no parameter of Harmon")


_DECODER_PREFIXES = tuple(
    f"mar.{prefix}" for prefix in ("decoder_", "mask_token", "diffusion_pos_embed_learned", "diffloss.")
)


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether the optimiser decays a parameter: not biases, not 1-D ones, nothing of the diffusion head."""
    return parameter.ndim > 1 and not name.endswith(".bias") and "diffloss" not in name


class Harmon(nn.Module):
    """The whole trainable model; the autoencoder is separate and frozen.

    Latents are [B, channels, h, w] as the autoencoder scales them; a fresh model is randomly initialised from
    torch's global generator.
    """

    def __init__(self, config: HarmonConfig) -> None:
        super().__init__()
        self.config = config
        self.llm = qwen(config.llm)
        self.mar = Mar(config.mar, config.head)
        hidden, width = config.llm.hidden_size, config.mar.encoder_width
        self.proj_in = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.proj_out = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width))
        if not config.shares_encoder:
            seen = config.understanding_channels or config.mar.token_channels
            self.proj_understanding = nn.Sequential(nn.Linear(seen, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        for module in (*self.proj_in, *self.proj_out, *getattr(self, "proj_understanding", ())):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.mar.fake_latent.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mar.fake_latent.dtype

    # -- tokens ----------------------------------------------------------------------------------------------

    def to_tokens(self, latents: Tensor) -> tuple[Tensor, Grid]:
        """[B, channels, h, w] -> tokens [B, N, C] in raster order, and their grid."""
        return self.mar.to_tokens(latents)

    def to_latents(self, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """The inverse of `to_tokens`."""
        return self.mar.to_latents(tokens_BNC, grid)

    # -- forward passes --------------------------------------------------------------------------------------

    def visual_features(
        self,
        tokens_BNC: Tensor,
        grid: Grid,
        visible_BM: Tensor | None = None,
        real: int | Tensor | None = None,
        pasts: Sequence[Past] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder outputs [B, S, D], buffers first, and LLM inputs [B, S, H], buffers last; `real` and `pasts`
        as in `Mar.encode`.

        The language model is causal: at the end of the image the buffers see every visible token.
        """
        buffers = self.config.mar.buffer_size
        x_BSD = self.mar.encode(tokens_BNC, grid, visible_BM, real, pasts)
        return x_BSD, self.proj_in(torch.cat([x_BSD[:, buffers:], x_BSD[:, :buffers]], 1))

    def picture_embeddings(self, seen: Tensor) -> Tensor:
        """LLM inputs [B, slots, H] of pictures that are asked about, seen whole.

        `seen` [B, channels, h, w] are latents, or the map of the frozen encoder that stands in MAR's place.
        """
        config = self.config
        if config.shares_encoder:
            return self.visual_features(*self.to_tokens(seen))[1]
        if config.understanding_encoder == "vae":
            tokens_BNC, _ = self.to_tokens(seen)
        else:
            if seen.shape[1] != config.understanding_channels:
                raise HarmonError(
                    f"a map {tuple(seen.shape)} of {config.understanding_encoder} does not fit the model: it takes "
                    f"{config.understanding_channels} channels"
                )
            tokens_BNC = seen.flatten(2).transpose(1, 2)
        embedded: Tensor = self.proj_understanding(tokens_BNC)
        return embedded

    def inform(self, x_BSD: Tensor, hidden_BSH: Tensor) -> Tensor:
        """Encoder outputs plus what the LLM made of them, [B, S, D], buffers first again."""
        visible = hidden_BSH.shape[1] - self.config.mar.buffer_size
        read_BSD = self.proj_out(hidden_BSH)
        return x_BSD + torch.cat([read_BSD[:, visible:], read_BSD[:, :visible]], 1)

    def read_after_text(
        self, text_ids: Tensor, text_mask: Tensor, image_BSH: Tensor, text_BLH: Tensor | None = None
    ) -> Tensor:
        """LLM outputs [B, S, H] of an image that follows right-padded text ([B, L], mask true at real tokens).

        `text_BLH` are the embeddings of prompts that hold pictures; without them an image slot reads as token 0.

        The image stands right behind each row's own text and the padding behind both: there causal attention
        needs no mask to keep it out, and places in the sequence are positions.
        """
        if text_BLH is None:
            text_BLH = self.llm.model.embed_tokens(text_ids.clamp(min=0))
        image_BSH = image_BSH.to(text_BLH.dtype)
        places_S = torch.arange(image_BSH.shape[1], device=text_ids.device)
        places_BS = text_mask.sum(1, keepdim=True) + places_S
        room_BSH = torch.zeros_like(image_BSH)
        x_BTH = torch.cat([text_BLH, room_BSH], 1).scatter(1, places_BS.unsqueeze(-1).expand_as(image_BSH), image_BSH)
        return read_causally(self.llm.model, x_BTH, read_BR=places_BS)

    def prompt_embeddings(self, input_ids: Tensor, image_BSH: Tensor | None, real_BL: Tensor | None = None) -> Tensor:
        """LLM inputs [B, L, H]: the table's rows, with `image_BSH` in the slots marked IMAGE_SLOT; or those of the
        places `real_BL` (bool, all slots among them) alone, end to end, [1, T, H].

        The slots are counted where `input_ids` lie: on the CPU that waits for no other device.
        """
        slots_BL = input_ids == IMAGE_SLOT
        wanted = 0 if image_BSH is None else image_BSH.shape[1]
        found = slots_BL.sum(1)
        if bool((found != wanted).any()):
            raise HarmonError(
                f"each prompt must hold {wanted} image slots for these images, but they hold "
                f"{found.tolist()}; build them for this image size and do not cut them"
            )
        if real_BL is not None:
            input_ids, slots_BL = input_ids[real_BL].unsqueeze(0), slots_BL[real_BL].unsqueeze(0)
        text_BLH: Tensor = self.llm.model.embed_tokens(self._here(input_ids.masked_fill(slots_BL, 0)))
        if image_BSH is None:
            return text_BLH
        return _with_pictures(text_BLH, self._here(slots_BL), self._here(_order(slots_BL)), image_BSH)

    def _here(self, x: Tensor) -> Tensor:
        return sent(x, self.device)

    def _seeing_prompts(self, text_ids: Tensor, tokens_BNC: Tensor, grid: Grid) -> Tensor:
        """Embeddings [B, L, H] of prompts in whose N + U image slots, where a row has them, its own picture stands,
        seen whole as in understanding.

        Every row's picture is seen, also where no prompt holds one: workers with shards of the weights must make
        equally many passes, forward and backward, whatever their own rows are. Nothing here asks the device.
        """
        if not self.config.shares_encoder:
            raise HarmonError(
                f"reconstruction alignment needs the encoder that draws, and this model sees with "
                f"{self.config.understanding_encoder}; set understanding_encoder: mar"
            )
        slots_BL = text_ids == IMAGE_SLOT
        _, image_BSH = self.visual_features(tokens_BNC, grid)
        if self.config.grad_scale is not None:
            image_BSH = ScaleGradient.apply(image_BSH, self.config.grad_scale)
        text_BLH: Tensor = self.llm.model.embed_tokens(text_ids.clamp(min=0))
        row_B1 = torch.arange(len(text_ids), device=text_ids.device).unsqueeze(1)
        slot_BL = (slots_BL.cumsum(1) - 1).clamp(min=0)  # which of its row's slots a place is
        return _with_pictures(text_BLH, slots_BL, row_B1 * image_BSH.shape[1] + slot_BL, image_BSH)

    # -- losses ----------------------------------------------------------------------------------------------

    def gathered(self, run: Callable[[], LossSum]) -> LossSum:
        """What `run` gives, one of the losses below; sharded weights are gathered around it."""
        return run()

    def text_to_image_loss(
        self,
        latents: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        order: Tensor,
        masked: int,
        timesteps: Tensor,
        noise: Tensor,
        weight: Tensor | None = None,
        *,
        pictured: bool = False,
    ) -> LossSum:
        """Diffusion loss over the masked positions: the first `masked` of each row's `order` (int64 [B, N]).

        Text is right padded ([B, L], mask true at real tokens). With `pictured`, a row whose text holds IMAGE_SLOT,
        N + U in a row, has its own picture as the prompt (reconstruction alignment, arXiv 2509.07295). `timesteps`
        [R, B, N] and `noise` [R, B, N, C] hold R draws per position, of which those at masked positions are read; a
        position's loss is the mean over them. `weight` [B] multiplies a row's loss and its count.
        """
        tokens_BNC, grid = self.to_tokens(latents)
        masked_BP = order[:, :masked]
        visible_BM = order[:, masked:].sort(1).values
        x_BSD, image_BSH = self.visual_features(tokens_BNC, grid, visible_BM)
        if pictured:
            text_BLH = self._seeing_prompts(text_ids, tokens_BNC, grid)
        else:
            text_BLH = self.llm.model.embed_tokens(text_ids)
        hidden_BSH = self.read_after_text(text_ids, text_mask, image_BSH, text_BLH)
        z_BPZ = self.mar.decode(self.inform(x_BSD, hidden_BSH), grid, visible_BM, masked_BP)
        repeats = len(timesteps)
        index_RBP = masked_BP.expand(repeats, -1, -1)
        noise_RBPC = noise.gather(2, index_RBP.unsqueeze(-1).expand(-1, -1, -1, noise.shape[-1]))
        rows_RBP = self.mar.diffloss.loss_rows(
            z_BPZ, take(tokens_BNC, masked_BP), timesteps.gather(2, index_RBP), noise_RBPC
        )
        sums_B = rows_RBP.mean(0).sum(1)
        return _weighted(sums_B, torch.full_like(sums_B, masked), weight)

    def image_to_text_loss(
        self,
        latents: Tensor | None,
        input_ids: Tensor,
        labels: Tensor,
        *,
        weight: Tensor | None = None,
        grad_scale: float | None = 0.1,
        packed: bool = False,
    ) -> LossSum:
        """Cross-entropy of the labelled tokens; with `latents` None, of text alone.

        `latents` are what `picture_embeddings` takes. `input_ids` [B, L] hold IMAGE_SLOT at the image positions (tokens
        in raster order, then MAR's buffers) and must be right padded: causal attention keeps that padding out by
        itself, and no other. `labels` [B, L] hold `harmon.text.IGNORED` where nothing is learned, padding included.
        Both may lie on the CPU wherever the model does; then nothing here waits for its device. The gradient into MAR's
        features is multiplied by `grad_scale` (None: not); a connector that drawing does not share gets all of it.
        `packed`: the language model reads the rows end to end, without their padding; the loss is the same up to the
        last bits of float sums.
        """
        image_BSH = None
        if latents is not None:
            image_BSH = self.picture_embeddings(latents)
            if grad_scale is not None and self.config.shares_encoder:
                image_BSH = ScaleGradient.apply(image_BSH, grad_scale)
        read = self._read_packed if packed else self._read_padded
        hidden_RH, wanted_R, rows_R, counts_B = read(input_ids, labels, image_BSH)
        logits = self.llm.lm_head(hidden_RH)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a float64 model stays exact
        losses = F.cross_entropy(logits, wanted_R, reduction="none")
        sums_B = losses.new_zeros(len(labels)).index_add(0, rows_R, losses)
        return _weighted(sums_B, counts_B.to(losses.dtype), weight)

    def _read_padded(self, input_ids: Tensor, labels: Tensor, image_BSH: Tensor | None) -> _Read:
        x_BLH = self.prompt_embeddings(input_ids, image_BSH)
        targets_BL = labels[:, 1:]
        labelled_BL = targets_BL >= 0
        counts_B = labelled_BL.sum(1)
        # The last layer and the vocabulary run where there is a label: each row's first so many of `places_BR`.
        most = max(1, int(counts_B.max()))
        places_BR = labelled_BL.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        rows, columns = (torch.arange(most, device=labels.device) < counts_B.unsqueeze(1)).nonzero(as_tuple=True)
        wanted = self._here(targets_BL.gather(1, places_BR)[rows, columns])
        rows, columns, counts_B = self._here(rows), self._here(columns), self._here(counts_B)
        hidden_BRH = read_causally(self.llm.model, x_BLH, read_BR=self._here(places_BR))
        return hidden_BRH[rows, columns], wanted, rows, counts_B

    def _read_packed(self, input_ids: Tensor, labels: Tensor, image_BSH: Tensor | None) -> _Read:
        chats = pack(input_ids, labels)
        x_1TH = self.prompt_embeddings(input_ids, image_BSH, chats.real_BL)
        segments, read_1R = Segments.of(chats.lengths, self.device), self._here(chats.read_R).unsqueeze(0)
        hidden_1RH = read_causally(self.llm.model, x_1TH, read_BR=read_1R, segments=segments)
        wanted_R, rows_R, counts_B = (self._here(one) for one in (chats.wanted_R, chats.rows_R, chats.counts_B))
        return hidden_1RH[0], wanted_R, rows_R, counts_B

    # -- released weights ------------------------------------------------------------------------------------

    def load_released(self, state: Mapping[str, Tensor]) -> None:
        """Load a flat state dict under the released names, whatever its float type.

        `llm.lm_head.weight` may be absent, or present as a copy of the tied embedding; any other missing or
        unexpected key, or a wrong shape, is refused by name.
        """
        own = self.state_dict()
        given = dict(state)
        if self.config.llm.tie_word_embeddings and "llm.model.embed_tokens.weight" in given:
            head = given.setdefault("llm.lm_head.weight", given["llm.model.embed_tokens.weight"])
            if not torch.equal(head, given["llm.model.embed_tokens.weight"]):
                raise HarmonError("llm.lm_head.weight differs from the embedding that it is tied to")
        problems = [f"{key} is missing" for key in own if key not in given]
        problems += [f"{key} is unexpected" for key in given if key not in own]
        problems += [
            f"{key} has shape {tuple(given[key].shape)} in place of {tuple(value.shape)}"
            for key, value in own.items()
            if key in given and given[key].shape != value.shape
        ]
        if problems:
            raise HarmonError(f"the weights do not fit this model: {_listed(problems)}")
        self.load_state_dict(given)


def _order(slots_BL: Tensor) -> Tensor:
    """For each place, how many slots of the batch come before it; at other places any number that is a slot's."""
    return (slots_BL.flatten().cumsum(0) - 1).clamp(min=0).view_as(slots_BL)


def _with_pictures(text_BLH: Tensor, slots_BL: Tensor, of_BL: Tensor, image_BSH: Tensor) -> Tensor:
    """`text_BLH`, at `slots_BL` (bool) the picture's embedding number `of_BL`, counted over all of `image_BSH`.

    It looks them up: masked_scatter would have to ask the device, on the way back, how many slots there are.
    """
    picture_BLH = image_BSH.to(text_BLH.dtype).flatten(0, 1).index_select(0, of_BL.flatten()).view_as(text_BLH)
    return torch.where(slots_BL.unsqueeze(-1), picture_BLH, text_BLH)


def _weighted(sums_B: Tensor, counts_B: Tensor, weight: Tensor | None) -> LossSum:
    weight_B = torch.ones_like(sums_B) if weight is None else weight.to(sums_B)
    return LossSum(total=(sums_B * weight_B).sum(), count=(counts_B * weight_B).sum(), per_sample=sums_B.detach())


def _listed(problems: list[str], shown: int = 10) -> str:
    more = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more
