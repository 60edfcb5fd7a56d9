"""Images behind prompts that the language model reads once.

Shape letters: B images, G prompt rows (B, or 2B with guidance, conditional first), L prompt length, N positions, M
visible positions, U buffer, S = M + U, C token channels, D encoder width, H LLM width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from harmon.model.harmon import Harmon
from harmon.model.language import KeyValues, positions_of, read_causally
from harmon.model.mar import Grid


class PromptedImage:
    """Right-padded prompts whose keys and values the LLM keeps, before images that change behind them."""

    def __init__(self, model: Harmon, text_ids: Tensor, text_mask: Tensor, grid: Grid) -> None:
        self.model, self.grid = model, grid
        self.text_mask_GL = text_mask.bool()
        self.unpadded = bool(self.text_mask_GL.all())
        rows, self.prompt = text_ids.shape
        llm = model.llm.model
        self.past = KeyValues(llm, rows, self.prompt + bucket(grid.positions) + model.config.mar.buffer_size)
        nothing_G0 = text_ids.new_zeros(rows, 1)  # of the prompts only keys and values are wanted
        positions_L = torch.arange(self.prompt, device=text_ids.device)
        read_causally(llm, llm.embed_tokens(text_ids), positions=positions_L, read_BR=nothing_G0, past=self.past)

    def encode(
        self, tokens_BNC: Tensor, visible_BM: Tensor, copies: int | None = None, padded: int | None = None
    ) -> Tensor:
        """Encoder outputs informed by the prompts, [G, S, D]; the encoder runs once an image.

        `copies` of each image are read, behind the first `copies` * B prompts; None: behind all. The visible
        tokens are computed as `padded` of them, for a shape that comes again.
        """
        real, buffers = visible_BM.shape[1], self.model.config.mar.buffer_size
        size = real if padded is None else padded
        x_BSD, image_BSH = self.model.visual_features(
            tokens_BNC, self.grid, F.pad(visible_BM, (0, size - real)), None if size == real else real
        )
        copies = copies or len(self.text_mask_GL) // len(x_BSD)
        rows = copies * len(x_BSD)
        image_GSH = image_BSH.repeat(copies, 1, 1)
        seen_GT = torch.cat([self.text_mask_GL[:rows], image_GSH.new_ones(image_GSH.shape[:2], dtype=torch.bool)], 1)
        seen_GT[:, self.prompt + real : self.prompt + size] = False
        hidden_GSH = read_causally(
            self.model.llm.model,
            image_GSH,
            positions=positions_of(seen_GT)[:, self.prompt :],
            seen=None if self.unpadded and size == real else seen_GT,
            past=self.past.first(rows),
        )
        return self.model.inform(x_BSD.repeat(copies, 1, 1), hidden_GSH)[:, : buffers + real]


def bucket(count: int) -> int:
    """The power of two from 8 on that holds `count`: the shapes that compiled regions see are these alone."""
    return max(8, 1 << (count - 1).bit_length()) if count else 8
