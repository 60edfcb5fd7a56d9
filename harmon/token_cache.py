"""Features of tokens that are kept from AR step to AR step: an approximation (LazyMAR's token cache, arXiv 2503.12450).

LazyMAR observes that most features hardly change from one AR step to the next. Every n-th step everything is
computed. Between those, three kinds of place are: the buffers, the tokens drawn since, and in the decoder the positions
about to be drawn. The keys and values of all others are those of the pass that last computed them. LazyMAR picks the
places anew by their features' similarity; here a place's kind decides, which needs no pass through the first layers.
The language model takes part: a kept key is rotated to its token's present position, which tokens drawn before it
in raster order have moved.

Shape letters: B images, G rows (B, or 2B with guidance, conditional first), N positions, M visible positions, W those
computed anew, P positions drawn, U buffer, L prompt length, Z decoder width, K = L + M + U.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harmon.model.kept import Kept
from harmon.model.language import read_among
from harmon.prompted import PromptedImage


class TokenCache:
    """Decoder outputs of images behind prompts, for AR steps that follow each other."""

    def __init__(self, prompted: PromptedImage, images: int, every: int) -> None:
        """Everything is computed in every `every`-th step."""
        self.prompted, self.every, self.age = prompted, every, every
        model, rows, positions = prompted.model, len(prompted.text_mask_GL), prompted.grid.positions
        mar, llm, like = model.config.mar, model.config.llm, model.mar.fake_latent
        slots = mar.buffer_size + positions
        encoder_width, decoder_width, llm_width = (
            width // heads
            for width, heads in (
                (mar.encoder_width, mar.encoder_heads),
                (mar.decoder_width, mar.decoder_heads),
                (llm.hidden_size, llm.num_attention_heads),
            )
        )
        self.encoder = Kept(mar.encoder_depth, images, mar.encoder_heads, slots, encoder_width, like)
        self.llm = Kept(llm.num_hidden_layers, rows, llm.num_key_value_heads, slots, llm_width, like)
        self.decoder = Kept(mar.decoder_depth, rows, mar.decoder_heads, slots, decoder_width, like)
        self.images, self.copies = images, 0
        self.read_BM = torch.zeros(images, 0, dtype=torch.int64, device=like.device)
        """Visible positions in the order in which they were read."""
        self.drawn_BP = self.read_BM

    def decode(self, tokens_BNC: Tensor, visible_BM: Tensor, drawn_BP: Tensor | None, copies: int) -> Tensor:
        """[G, P, Z] at `drawn_BP`, or at every position, of `copies` of each image.

        Positions (int64, ascending) are visible that were visible in the call before or were drawn in it. A half
        of guidance that the call before left out, and outputs at every position, make everything be computed.
        """
        model, buffers = self.prompted.model, self.prompted.model.config.mar.buffer_size
        device, visible = visible_BM.device, visible_BM.shape[1]
        whole = self.age >= self.every or copies > self.copies or drawn_BP is None
        self.age, self.copies = 1 if whole else self.age + 1, copies
        new_BW = visible_BM if whole else self.drawn_BP
        self.read_BM = new_BW if whole else torch.cat([self.read_BM, new_BW], 1)
        if drawn_BP is not None:
            self.drawn_BP = drawn_BP

        buffer_BU = torch.arange(buffers, device=device).expand(self.images, -1)
        new_BW_places = torch.arange(visible - new_BW.shape[1], visible, device=device).expand(self.images, -1)
        read_BS = torch.cat([buffer_BU, new_BW_places + buffers], 1)
        x_BSD, image_BSH = model.visual_features(
            tokens_BNC, self.prompted.grid, new_BW, pasts=self.encoder.at(read_BS, buffers + visible)
        )
        hidden_GSH = self._read(image_BSH, copies)
        informed_GSD = model.inform(x_BSD.repeat(copies, 1, 1), hidden_GSH)

        slots = buffers + self.prompted.grid.positions
        if drawn_BP is None or whole:
            places_BQ = torch.arange(slots, device=device).expand(self.images, -1)
        else:
            places_BQ = torch.cat([buffer_BU, buffers + torch.cat([new_BW, drawn_BP], 1).sort(1).values], 1)
        return model.mar.decode(
            informed_GSD,
            self.prompted.grid,
            new_BW.repeat(copies, 1),
            None if drawn_BP is None else drawn_BP.repeat(copies, 1),
            pasts=self.decoder.at(places_BQ.repeat(copies, 1), slots),
        )

    def _read(self, image_BSH: Tensor, copies: int) -> Tensor:
        """LLM outputs [G, W + U, H] of the newest visible tokens and the buffers behind them."""
        device, positions = image_BSH.device, self.prompted.grid.positions
        computed, buffers = image_BSH.shape[1], self.prompted.model.config.mar.buffer_size
        buffer_BU = torch.arange(positions, positions + buffers, device=device).expand(self.images, -1)
        raster_BT = torch.cat([self.read_BM, buffer_BU], 1)  # in raster order the buffers come last
        length = raster_BT.shape[1]
        rank_BT = raster_BT.argsort(1).argsort(1)
        before_BQT = raster_BT.unsqueeze(1) <= raster_BT[:, length - computed :].unsqueeze(2)
        rows = copies * self.images
        text_GL = self.prompted.text_mask_GL[:rows]
        seen_GQK = torch.cat([text_GL.unsqueeze(1).expand(-1, computed, -1), before_BQT.repeat(copies, 1, 1)], 2)
        places_GQ = torch.arange(length - computed, length, device=device).expand(rows, -1)
        return read_among(
            self.prompted.model.llm.model,
            image_BSH.repeat(copies, 1, 1),
            text_GL.sum(1, keepdim=True) + rank_BT.repeat(copies, 1),
            seen_GQK,
            self.prompted.past.first(rows),
            self.llm.at(places_GQ, length),
        )
