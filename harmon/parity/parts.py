"""Replay of the parts: autoencoder, encoders and decoder, schedule, head and single diffusion steps."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from harmon.model.config import TRAIN_STEPS
from harmon.model.diffusion import (
    ancestral_step,
    bound_rows,
    diffuse,
    guided,
    mse_rows,
    schedule,
    tables,
    train_alphas_cumprod,
)
from harmon.model.language import positions_of
from harmon.parity.golden import Golden, Line


@torch.no_grad()
def autoencoder(golden: Golden) -> Iterator[Line]:
    for shape in golden.config["shapes"]:
        pixels = golden.tensor(f"in.vae.{shape}.pixels")
        yield golden.line(f"vae.{shape}.moments", golden.autoencoder.moments(pixels))
        yield golden.line(f"vae.{shape}.latents", golden.as_recorded(golden.autoencoder.encode(pixels)))
        latents = golden.latents(f"out.vae.{shape}.latents")
        yield golden.line(f"vae.{shape}.decoded", golden.autoencoder.decode(latents))


def visible_positions(mask: Tensor) -> Tensor:
    """Visible positions in raster order, int64 [B, M], of a mask [B, N] that is 1 where masked."""
    return (mask == 0).nonzero()[:, 1].view(len(mask), -1)


@torch.no_grad()
def encoders_and_decoder(golden: Golden) -> Iterator[Line]:
    model = golden.model
    for shape in golden.config["shapes"]:
        tokens, grid = model.to_tokens(golden.latents(f"in.vis.{shape}.latents"))
        visible = visible_positions(golden.tensor(f"in.vis.{shape}.mask"))
        full, llm_full = model.visual_features(tokens, grid)
        x, image = model.visual_features(tokens, grid, visible)
        yield golden.line(f"vis.{shape}.full.x_enc", full)
        yield golden.line(f"vis.{shape}.full.z_enc", llm_full)
        yield golden.line(f"vis.{shape}.masked.x_enc", x)
        yield golden.line(f"vis.{shape}.masked.z_enc", image)
        ids, text_mask = (golden.tensor(f"in.text.{name}")[: len(x)] for name in ("input_ids", "attention_mask"))
        hidden = model.read_after_text(ids, text_mask, image)
        seen = torch.cat([text_mask.bool(), text_mask.new_ones(image.shape[:2], dtype=torch.bool)], 1)
        yield golden.line(f"mae_enc.{shape}.position_ids", positions_of(seen))
        yield golden.line(f"mae_enc.{shape}.llm_hidden_image_part", hidden)
        yield golden.line(f"mae_enc.{shape}.x_enc", model.inform(x, hidden))
        informed = golden.given(f"out.mae_enc.{shape}.x_enc")
        yield golden.line(f"mae_dec.{shape}.z", model.mar.decode(informed, grid, visible))
        filled = model.mar.decode(informed, grid, visible, fill_BTD=golden.given(f"out.vis.{shape}.full.x_enc"))
        yield golden.line(f"mae_dec.{shape}.z_x_con", filled)


def chain(golden: Golden) -> Iterator[Line]:
    chain = schedule(golden.model.config.head.sampling_steps)
    yield golden.line("gen_timestep_map", torch.from_numpy(chain.timesteps))
    for name in golden.tensors:
        if name.startswith("out.schedule.gen."):
            values = getattr(chain, name.rsplit(".", 1)[1])
            yield golden.line(name.removeprefix("out."), torch.from_numpy(values))
    for name in golden.tensors:
        if every := re.fullmatch(r"out\.(schedule\.train\.alphas_cumprod_every(\d+))", name):
            yield golden.line(every[1], torch.from_numpy(train_alphas_cumprod()[:: int(every[2])].copy()))


@torch.no_grad()
def head(golden: Golden) -> Iterator[Line]:
    z = golden.given("in.diffloss.z")
    target, mask, t, noise, net_x = (
        golden.tensor(f"in.diffloss.{name}") for name in ("target", "mask", "t", "noise", "net_x")
    )
    head = golden.model.mar.diffloss
    embedded = head.net.cond_embed(z)
    yield golden.line("diffloss.net_out", head.net(net_x, t, embedded))
    for name, scale in _guided_names(golden, "diffloss.net_out_"):
        half = net_x[: len(net_x) // 2]
        cond, uncond = head.net(torch.cat([half, half]), t, embedded).chunk(2)
        yield golden.line(name, torch.cat([guided(cond, uncond, scale), with_own_range(cond, uncond, scale)]))
    steps = tables(str(TRAIN_STEPS), z.device).at(t)
    noisy = diffuse(steps, target, noise)
    output = head.net(noisy, t, embedded)
    yield golden.line("diffloss.x_t", noisy)
    yield golden.line("diffloss.row_mse", mse_rows(output.chunk(2, -1)[0], noise))
    yield golden.line("diffloss.row_vb", bound_rows(steps, target, noisy, output))
    rows = head.loss_rows(z, target, t, noise)
    yield golden.line("diffloss.row_loss", rows)
    yield golden.line("diffloss.masked_loss", (rows * mask).sum() / mask.sum())
    yield golden.line("diffloss.unmasked_loss", rows.mean())


def _guided_names(golden: Golden, prefix: str) -> Iterator[tuple[str, float]]:
    """Recorded outputs `<prefix>cfg<scale>`, with their scale."""
    for name in golden.tensors:
        if found := re.fullmatch(rf"out\.({re.escape(prefix)}cfg([\d.]+))", name):
            yield found[1], float(found[2])


def with_own_range(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """The guided epsilon with the unconditional row's own variance range, as the release hands it on."""
    epsilon, _ = guided(cond, uncond, scale).chunk(2, -1)
    return torch.cat([epsilon, uncond.chunk(2, -1)[1]], -1)


@torch.no_grad()
def single_steps(golden: Golden) -> Iterator[Line]:
    """Single ancestral steps from recorded states, at every index of the respaced chain."""
    x, z, noise = golden.tensor("in.pstep.x"), golden.given("in.pstep.z"), golden.tensor("in.pstep.noise")
    net = golden.model.mar.diffloss.net
    chain = tables(golden.model.config.head.sampling_steps, z.device)
    temperature = _temperature(golden.meaning("in.pstep.x"))
    embedded = net.cond_embed(z)

    def stepped(index: int, output: Tensor) -> Tensor:
        step_noise = noise[index] if index else None
        return torch.stack(ancestral_step(chain.at(index), x[index], output, step_noise, temperature))

    indices = range(len(x))
    plain = [stepped(index, net(x[index], chain.timesteps[index], embedded)) for index in indices]
    yield golden.line("pstep.out_nocfg", torch.stack(plain))
    for name, scale in _guided_names(golden, "pstep.out_"):
        outputs = []
        for index in indices:
            half = x[index][: len(z) // 2]
            cond, uncond = net(torch.cat([half, half]), chain.timesteps[index], embedded).chunk(2)
            outputs.append(torch.cat([guided(cond, uncond, scale), with_own_range(cond, uncond, scale)]))
        yield golden.line(name, torch.stack([stepped(index, output) for index, output in enumerate(outputs)]))


def _temperature(meaning: str) -> float:
    """The manifest states the temperature of single steps only in words."""
    stated = re.search(r"temperature ([\d.]*\d)", meaning)
    return float(stated[1]) if stated else 1.0
