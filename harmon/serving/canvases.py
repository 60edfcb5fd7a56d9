"""Pictures of different requests drawn together, each at its own AR step.

One pass of the encoder, the language model and the decoder serves all canvases of a grid, and one chain of the
diffusion head all positions that are drawn. A canvas that joins begins with its first AR step beside others in their
last. Rows have different numbers of visible tokens then: the shorter are padded with places that are no keys.

Every draw of a canvas comes from its own seed, as `harmon.drawing.draw_latents` takes it, so that a picture is that of
`harmon generate` up to the rounding of float sums in another batch: at most one of 256 levels in the tests.

Shape letters: B canvases, G prompt rows (B conditional, then those that are guided), L prompt length, N positions, M
visible positions, P positions drawn, R those of several canvases, U buffer, C token channels, Z decoder width, H halves
of guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harmon.model.diffusion import tables
from harmon.model.harmon import Harmon
from harmon.model.language import KeyValues, positions_of, read_causally
from harmon.model.mar import Grid
from harmon.prompts import padded
from harmon.sampling import Iteration, annealed, draw_tokens, plan
from harmon.sampling_config import SamplingConfig
from harmon.seeds import stream


@dataclass(frozen=True)
class Subject:
    """What one picture depends on: token ids of its prompt and of what guidance leads away from, the grid of its
    latents, its seed, and how it is drawn (with the diffusion steps named; `cfg_every` and `refresh_every` 1).
    """

    prompt: tuple[int, ...]
    against: tuple[int, ...]
    grid: tuple[int, int]
    seed: int
    sampling: SamplingConfig


class Canvas:
    """One picture as far as it is drawn."""

    def __init__(self, model: Harmon, subject: Subject) -> None:
        patch, how = model.config.mar.patch_size, subject.sampling
        self.subject = subject
        self.grid = Grid(subject.grid[0] // patch, subject.grid[1] // patch)
        positions = self.grid.positions
        self.turns = plan(positions, how.ar_steps, how.cfg, how.cfg_schedule, how.cfg_interval)
        self.generator = torch.Generator().manual_seed(stream(subject.seed, "picture") % 2**63)
        self.order_N = torch.randperm(positions, generator=self.generator)
        self.tokens_NC = torch.zeros(positions, model.config.mar.token_channels, device=model.device)
        self.done = 0
        """AR steps."""
        self.pasts: list[Tensor] = []
        """Keys and values of the prompt, and under guidance of the other, [2, layers, heads, L, d] each."""

    @property
    def turn(self) -> Iteration:
        return self.turns[self.done]

    @property
    def finished(self) -> bool:
        return self.done == len(self.turns)

    @property
    def chain(self) -> str:
        """Respacing of the diffusion steps of this AR step."""
        how = self.subject.sampling
        assert how.diffusion_steps is not None  # Subject's
        return annealed(how.diffusion_steps, how.diffusion_steps_last, self.done, len(self.turns))

    def visible(self) -> Tensor:
        return self.order_N[self.turn.masked :].sort().values

    def drawn(self) -> Tensor:
        return self.order_N[self.turn.masked_next : self.turn.masked].sort().values

    def noise(self) -> Tensor:
        """Of this AR step, [T, P, C]; to be asked for once, since it is drawn anew."""
        steps = len(tables(self.chain, self.tokens_NC.device).timesteps)
        shape = (steps, self.turn.masked - self.turn.masked_next, self.tokens_NC.shape[1])
        return torch.randn(shape, generator=self.generator).to(self.tokens_NC.device)


class Canvases:
    """All canvases of one grid that are being drawn; for one thread, on a model in evaluation mode."""

    def __init__(self, model: Harmon, fill: int) -> None:
        """`fill` is the id that pads prompts."""
        self.model, self.fill = model, fill
        self.rows: list[Canvas] = []
        self._joined: tuple[list[Tensor], KeyValues, Tensor] | None = None

    @torch.no_grad()
    def join(self, new: Sequence[Canvas]) -> None:
        """Read the prompts of `new`, all at once; they are drawn from the next AR step on."""
        llm = self.model.llm.model
        asked = [(canvas, canvas.subject.prompt) for canvas in new]
        asked += [(canvas, canvas.subject.against) for canvas in new if canvas.subject.sampling.cfg != 1]
        ids, _ = padded([prompt for _, prompt in asked], self.fill, self.model.device)
        past = KeyValues(llm, *ids.shape)
        nothing = ids.new_zeros(len(ids), 1)  # of the prompts only keys and values are wanted
        places = torch.arange(ids.shape[1], device=ids.device)
        read_causally(llm, llm.embed_tokens(ids), positions=places, read_BR=nothing, past=past)
        for row, (canvas, prompt) in enumerate(asked):
            canvas.pasts.append(past.memory[:, :, row, :, : len(prompt)].clone())
        self.rows += new

    def leave(self, canvases: Sequence[Canvas]) -> None:
        self.rows = [row for row in self.rows if row not in canvases]
        self._joined = None

    @torch.no_grad()
    def advance(self) -> None:
        """One AR step of every canvas that is not finished."""
        at_work = [row for row in self.rows if not row.finished]
        # with more AR steps than positions the superfluous ones draw nothing
        drawing = [row for row in at_work if row.turn.masked_next < row.turn.masked]
        if drawing:
            self._draw(drawing)
        for row in at_work:
            row.done += 1

    def latents(self, canvases: Sequence[Canvas]) -> Tensor:
        """[B, channels, h, w] float32 of canvases of this grid, zero where nothing is drawn yet."""
        return self.model.to_latents(torch.stack([row.tokens_NC for row in canvases]), canvases[0].grid)

    def _draw(self, rows: list[Canvas]) -> None:
        guided = [number for number, row in enumerate(rows) if row.turn.cfg != 1]
        z_GPZ, drawn_BP = self._decode(rows, guided)
        z_of = {number: z_GPZ[len(rows) + place] for place, number in enumerate(guided)}
        for numbers in _alike(rows):
            counts = [row.turn.masked - row.turn.masked_next for row in (rows[number] for number in numbers)]
            halves = [[z_GPZ[number, :count] for number, count in zip(numbers, counts)]]
            if numbers[0] in z_of:
                halves.append([z_of[number][:count] for number, count in zip(numbers, counts)])
            z_HRZ = torch.stack([torch.cat(half) for half in halves])
            noise_TRC = torch.cat([rows[number].noise() for number in numbers], 1)
            scales = torch.tensor([rows[number].turn.cfg for number in numbers])
            cfg_R1 = scales.repeat_interleave(torch.tensor(counts)).unsqueeze(1).to(z_HRZ.device)
            how = rows[numbers[0]].subject.sampling
            (tokens_RC,) = draw_tokens(
                self.model.mar.diffloss,
                z_HRZ,
                noise_TRC.unsqueeze(1),
                cfg_R1,
                rows[numbers[0]].chain,
                how.temperature,
                how.clip_x0,
                how.sampler,
            )
            for number, tokens_PC in zip(numbers, tokens_RC.split(counts)):
                rows[number].tokens_NC[drawn_BP[number, : len(tokens_PC)]] = tokens_PC

    def _decode(self, rows: list[Canvas], guided: list[int]) -> tuple[Tensor, Tensor]:
        """Decoder outputs [G, P, Z] of each row's own number of positions, and those positions [B, P]."""
        model, device = self.model, self.model.device
        # padded with the position drawn last, which is masked as long as a canvas is at work
        last = [int(row.order_N[0]) for row in rows]
        visible_BM, real_BM = _ragged([row.visible() for row in rows], last, device)
        drawn_BP, _ = _ragged([row.drawn() for row in rows], last, device)
        full = bool(real_BM.all())
        x_BSD, image_BSH = model.visual_features(
            torch.stack([row.tokens_NC for row in rows]), rows[0].grid, visible_BM, None if full else real_BM
        )
        row_G = torch.tensor([*range(len(rows)), *guided], device=device)
        past, text_GL = self._prompts([row.pasts[0] for row in rows] + [rows[number].pasts[1] for number in guided])
        buffers_BU = real_BM.new_ones(len(rows), model.config.mar.buffer_size)
        seen_GT = torch.cat([text_GL, torch.cat([real_BM, buffers_BU], 1)[row_G]], 1)  # the LLM reads buffers last
        hidden_GSH = read_causally(
            model.llm.model,
            image_BSH[row_G],
            positions=positions_of(seen_GT)[:, text_GL.shape[1] :],
            seen=None if bool(seen_GT.all()) else seen_GT,
            past=past,
        )
        z_GPZ = model.mar.decode(
            model.inform(x_BSD[row_G], hidden_GSH),
            rows[0].grid,
            visible_BM[row_G],
            drawn_BP[row_G],
            real_BM=None if full else real_BM[row_G],
        )
        return z_GPZ, drawn_BP

    def _prompts(self, pasts: list[Tensor]) -> tuple[KeyValues, Tensor]:
        """Prompts as one memory, with room for an image behind them, and what in it is real, [G, L]; kept until the
        rows are others.
        """
        if self._joined is not None:
            before, memory, text_GL = self._joined
            if len(before) == len(pasts) and all(old is new for old, new in zip(before, pasts)):
                return memory.first(len(pasts)), text_GL
        lengths = torch.tensor([past.shape[3] for past in pasts])
        longest = int(lengths.max())
        image = self.rows[0].grid.positions + self.model.config.mar.buffer_size
        memory = KeyValues(self.model.llm.model, len(pasts), longest + image)
        for row, past in enumerate(pasts):
            memory.memory[:, :, row, :, : past.shape[3]] = past
        memory.length = longest
        text_GL = (torch.arange(longest) < lengths.unsqueeze(1)).to(self.model.device)
        self._joined = (pasts, memory, text_GL)
        return memory.first(len(pasts)), text_GL


def _alike(rows: Sequence[Canvas]) -> list[list[int]]:
    """Numbers of the rows, those together whose tokens one chain of the head can draw."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, row in enumerate(rows):
        how = row.subject.sampling
        key = (row.chain, how.temperature, how.clip_x0, how.sampler, row.turn.cfg != 1)
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _ragged(rows: Sequence[Tensor], fill: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of positions as int64 [B, longest], each padded with its own `fill`, and what is real in them."""
    longest = max(len(row) for row in rows)
    places = torch.tensor(fill).unsqueeze(1).repeat(1, longest)
    for number, row in enumerate(rows):
        places[number, : len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return places.to(device), (torch.arange(longest) < lengths.unsqueeze(1)).to(device)
