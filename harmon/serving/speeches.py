"""Answers of different requests spoken together, a token of each at a time.

Prompts that come in together are read together; then their keys and values join those of the others, and one pass
finds the next token of all. An answer depends on its prompt and its seed, as in `harmon.answering`, up to the rounding
of float sums in another batch, which can turn a tie of two tokens.

Shape letters: B speeches, L prompt length, K keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harmon.answering import AnswerConfig, choose
from harmon.model.language import KeyValues, positions_of, read_causally
from harmon.prompts import padded
from harmon.seeds import stream
from harmon.trained import Trained

ROOM = 64  # new tokens that the memory holds at first
Ending = Literal["stop", "length"]


class Speech:
    """One answer as far as it is spoken."""

    def __init__(
        self, prompt: Sequence[int], pixels: NDArray[np.float32] | None, config: AnswerConfig, seed: int
    ) -> None:
        """`pixels` [3, px, px] fill the image slots of `prompt`; None: it has none."""
        self.prompt, self.pixels, self.config = prompt, pixels, config
        self.generator = torch.Generator().manual_seed(stream(seed, "answer") % 2**63)
        self.said: list[int] = []
        self.ending: Ending | None = None
        self.past: Tensor | None = None
        """Keys and values of what has been read, [2, layers, heads, K, d], while no batch holds them."""


class Speeches:
    """All answers that are being spoken; for one thread."""

    def __init__(self, trained: Trained) -> None:
        self.trained, self.model = trained, trained.model
        self.rows: list[Speech] = []
        self._memory = KeyValues(self.model.llm.model, 0, 0)
        self._seen_BK = torch.zeros(0, 0, dtype=torch.bool, device=self.model.device)

    @torch.no_grad()
    def join(self, new: Sequence[Speech]) -> None:
        """Read the prompts of `new` and speak their first tokens."""
        for some in ([one for one in new if one.pixels is not None], [one for one in new if one.pixels is None]):
            if some:
                self._read(some)
        self._arrange([*self.rows, *(one for one in new if one.ending is None)])

    def leave(self, speeches: Sequence[Speech]) -> None:
        kept = [row for row in self.rows if row not in speeches]
        if len(kept) < len(self.rows):
            self._arrange(kept)

    @torch.no_grad()
    def advance(self) -> None:
        """One more token of each; those that have ended leave."""
        llm = self.model.llm.model
        new_B1 = torch.tensor([[row.said[-1]] for row in self.rows], device=self.model.device)
        self._seen_BK = torch.cat([self._seen_BK, self._seen_BK.new_ones(len(self.rows), 1)], 1)
        hidden_B1H = read_causally(
            llm,
            llm.embed_tokens(new_B1),
            positions=positions_of(self._seen_BK)[:, -1:],
            read_BR=torch.zeros_like(new_B1),
            seen=None if bool(self._seen_BK.all()) else self._seen_BK,
            past=self._memory,
        )
        self._say(self.rows, self.model.llm.lm_head(hidden_B1H[:, 0]).float())
        self.leave([row for row in self.rows if row.ending is not None])

    def _read(self, new: Sequence[Speech]) -> None:
        """Prompts, all with a picture or all without."""
        model, llm = self.model, self.model.llm.model
        ids, mask = padded([one.prompt for one in new], self.trained.text.pad, model.device)
        embeddings = model.prompt_embeddings(ids, self._pictures(new))
        past = KeyValues(llm, *ids.shape)
        last_B1 = mask.sum(1, keepdim=True) - 1
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden_B1H = read_causally(llm, embeddings, positions=places, read_BR=last_B1, past=past)
        for row, one in enumerate(new):
            one.past = past.memory[:, :, row, :, : len(one.prompt)].clone()
        self._say(new, model.llm.lm_head(hidden_B1H[:, 0]).float())

    def _pictures(self, new: Sequence[Speech]) -> Tensor | None:
        pixels = [one.pixels for one in new if one.pixels is not None]
        if not pixels:
            return None
        latents = self.trained.autoencoder.encode(torch.from_numpy(np.stack(pixels)).to(self.model.device))
        for one in new:
            one.pixels = None  # read: not needed again
        return self.model.visual_features(*self.model.to_tokens(latents))[1]

    def _say(self, rows: Sequence[Speech], logits_BV: Tensor) -> None:
        likeliest = logits_BV.argmax(-1).tolist()
        for number, row in enumerate(rows):
            token = likeliest[number]
            if row.config.temperature > 0:
                token = int(choose(logits_BV[number : number + 1], row.config, [row.generator]))
            if token == self.trained.text.eos:
                row.ending = "stop"
                continue
            row.said.append(token)
            if len(row.said) >= row.config.max_new_tokens:
                row.ending = "length"

    def _arrange(self, rows: list[Speech]) -> None:
        """Memory of `rows` alone, each one's keys at the left and what is padding behind them."""
        for number, row in enumerate(self.rows):
            if row not in rows:
                continue
            row.past = self._memory.memory[:, :, number, :, : self._memory.length][:, :, :, self._seen_BK[number]]
        pasts = [row.past for row in rows if row.past is not None]
        lengths = torch.tensor([past.shape[3] for past in pasts], dtype=torch.int64)
        longest = int(lengths.max()) if pasts else 0
        self._memory = KeyValues(self.model.llm.model, len(rows), longest + ROOM)
        for number, past in enumerate(pasts):
            self._memory.memory[:, :, number, :, : past.shape[3]] = past
        self._memory.length = longest
        self._seen_BK = (torch.arange(longest) < lengths.unsqueeze(1)).to(self.model.device)
        for row in rows:
            row.past = None
        self.rows = rows
