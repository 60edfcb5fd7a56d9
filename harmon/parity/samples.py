"""Replay of generation, each iteration by itself and all in a row, and of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harmon.model.diffusion import ancestral_step, guided, tables
from harmon.model.mar import Grid
from harmon.parity.golden import Golden, Line
from harmon.parity.parts import visible_positions, with_own_range
from harmon.prompted import PromptedImage
from harmon.sampling import answer_logits, generate, plan


class RecordedDraws:
    """The draws of one recorded sampling run, handed out in order (a `harmon.sampling.Draws`)."""

    def __init__(self, golden: Golden, run: str, rows: int, images: int) -> None:
        found = [name for name in golden.tensors if name.startswith(f"draw.sample.{run}.")]
        names = sorted(found, key=lambda name: int(name.rsplit(".", 2)[1]))
        self.copies, self.images = rows // images, images
        self.draws = [golden.tensors[name] for name in names]
        self.starts = [index for index, name in enumerate(names) if name.endswith(".randn")]
        self._next = 0

    @property
    def ranges(self) -> list[list[int]]:
        """First and end draw of each iteration."""
        return [[first, end] for first, end in zip(self.starts, [*self.starts[1:], len(self.draws)])]

    def of_iteration(self, iteration: int) -> Tensor:
        """[T, G, P, C]: the start, the same for both halves, then the noise of all but the last step."""
        first, end = self.ranges[iteration]
        start, *steps = self.draws[first:end]
        start_BPC = start.view(self.images, len(start) // self.images, start.shape[-1])
        start_GPC = start_BPC.repeat(self.copies, 1, 1)
        return torch.stack([start_GPC, *(step.view_as(start_GPC) for step in steps[:-1])])

    def orders(self, images: int, positions: int) -> Tensor:
        return self.draws[0][:images]

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        while not self.draws[self.starts[self._next]].numel():
            self._next += 1  # the recording draws nothing for nothing; generation does not ask
        self._next += 1
        return self.of_iteration(self._next - 1)[:, :images]


@torch.no_grad()
def generations(golden: Golden) -> Iterator[Line]:
    for run, settings in golden.config["samples"].items():
        yield from _iterations(golden, run, settings)
        ids, mask = (golden.tensor(f"in.sample.{run}.{name}") for name in ("input_ids", "attention_mask"))
        draws = RecordedDraws(golden, run, len(ids), len(ids) // (1 if settings["cfg"] == 1 else 2))
        grid, patch = _grid(golden, settings), golden.model.config.mar.patch_size
        latents = generate(
            golden.model,
            ids,
            mask,
            (grid.height * patch, grid.width * patch),
            steps=settings["num_iter"],
            cfg=settings["cfg"],
            cfg_schedule=settings["cfg_schedule"],
            temperature=settings["temperature"],
            draws=draws,
        )
        kind = "sampling_end_to_end_rel"
        both = latents.repeat(len(ids) // len(latents), 1, 1, 1)
        yield golden.line(f"sample.{run}.final_latents", golden.as_recorded(both), kind)
        yield golden.line(f"sample.{run}.image", golden.autoencoder.decode(latents), kind)
        yield golden.line(f"sample.{run}.latent_absmax", latents.abs().max(), kind)
        yield golden.line(f"sample.{run}.draw_ranges", torch.tensor(draws.ranges))


def _grid(golden: Golden, settings: Mapping[str, Any]) -> Grid:
    """Tokens of a recorded run: shapes in the manifest count tokens, as the recorded canvases do."""
    return Grid(*golden.config["shapes"][settings["shape"]])


def _iterations(golden: Golden, run: str, settings: Mapping[str, Any]) -> Iterator[Line]:
    """Each AR step from the recorded canvas, whatever the ones before it gave."""
    model, name = golden.model, f"sample.{run}"
    kind = "sampling_teacher_forced_iteration_rel"
    features = "non_sampling_rel" if golden.bf16 else kind  # of one pass; measured: 0.03
    grid = _grid(golden, settings)
    ids, text_mask = (golden.tensor(f"in.{name}.{part}") for part in ("input_ids", "attention_mask"))
    copies = 1 if settings["cfg"] == 1 else 2
    images = len(ids) // copies
    draws = RecordedDraws(golden, run, len(ids), images)
    prompted = PromptedImage(model, ids, text_mask, grid)
    order = draws.orders(images, grid.positions)
    tokens = torch.zeros(images, grid.positions, model.config.mar.token_channels)
    turns = plan(grid.positions, settings["num_iter"], settings["cfg"], settings["cfg_schedule"])
    for i, turn in enumerate(turns):
        mask = torch.zeros(images, grid.positions).scatter(1, order[:, : turn.masked], 1.0)
        visible = visible_positions(mask)
        x = prompted.encode(tokens, visible)
        z = model.mar.decode(x, grid, visible.repeat(copies, 1))
        yield golden.line(f"{name}.it{i}.mask", mask.repeat(copies, 1))
        yield golden.line(f"{name}.it{i}.cfg", turn.cfg)
        if f"out.{name}.it{i}.x_enc" in golden.tensors:
            yield golden.line(f"{name}.it{i}.x_enc", x, features)
        yield golden.line(f"{name}.it{i}.z", z, features)
        drawn = order[:, turn.masked_next : turn.masked].sort(1).values
        places = drawn.unsqueeze(-1)
        z_drawn = z.gather(1, places.repeat(copies, 1, z.shape[-1]))
        noise = draws.of_iteration(i)
        predicted = _both_halves(golden, z_drawn, noise, images, turn.cfg, settings["temperature"])
        yield golden.line(f"{name}.it{i}.pred", predicted.flatten(0, 1), kind)
        recorded = golden.tensor(f"out.{name}.it{i}.pred").view_as(predicted)[:images]
        tokens = tokens.scatter(1, places.expand_as(recorded), recorded)


def _both_halves(golden: Golden, z: Tensor, noise: Tensor, images: int, cfg: float, temperature: float) -> Tensor:
    """Tokens [G, P, C] of all rows; the unconditional half's are recorded, though nothing reads them."""
    net = golden.model.mar.diffloss.net
    chain = tables(golden.model.config.head.sampling_steps, z.device)
    embedded = net.cond_embed(z)
    state = noise[0]
    for index in reversed(range(len(noise))):
        conditional = state[:images].repeat(len(z) // images, 1, 1)
        output = net(conditional, chain.timesteps[index], embedded)
        if len(z) > images:
            cond, uncond = output.chunk(2)
            output = torch.cat([guided(cond, uncond, cfg), with_own_range(cond, uncond, cfg)])
        step_noise = noise[len(noise) - index] if index else None
        state, _ = ancestral_step(chain.at(index), state, output, step_noise, temperature)
    return state


@torch.no_grad()
def answers(golden: Golden) -> Iterator[Line]:
    ids = golden.ids("in.answer.input_ids")
    latents = golden.encoded("in.answer.pixel_values")
    _, image = golden.model.visual_features(*golden.model.to_tokens(latents))
    yield golden.line("answer.prompt_embeds", golden.model.prompt_embeddings(ids, image))
    recorded = golden.tensor("out.answer.tokens")
    logits_of = answer_logits(golden.model, latents, ids, torch.ones_like(ids))
    logits = torch.cat([next(logits_of), *(logits_of.send(token) for token in recorded[:, :-1].unbind(1))])
    scale = logits.abs().max().item()  # a difference of logits carries the rounding of the logits
    tokens = logits.argmax(-1)
    if golden.bf16:  # whose rounding lets a near tie fall either way
        behind = logits.amax(-1) - logits.gather(1, recorded[0].unsqueeze(1)).squeeze(1)
        tokens = torch.where(behind <= golden.tolerance("non_sampling_rel") * scale, recorded[0], tokens)
    yield golden.line("answer.logits", logits)
    yield golden.line("answer.tokens", tokens.unsqueeze(0))
    first, second = logits.topk(2).values.unbind(-1)
    yield golden.line("answer.min_top2_margin", (first - second).min(), scale=scale)
