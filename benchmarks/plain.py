"""The same mathematics computed plainly: the peer that the speed of `harmon` is measured against.

It does what a first implementation in eager PyTorch does, and what the published one is known to do: the head's loss
at every position times a mask, its condition embedded anew for each timestep, every layer at every position, a padding
mask throughout, both halves of guidance through the whole model and the autoencoder, tables looked up in NumPy.
It shares weights and layers with the model under test, and no shortcut.

Shape letters as in harmon.model.harmon; G rows of both halves of guidance.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from harmon.model.autoencoder import KlAutoencoder
from harmon.model.diffusion import Tables, ancestral_step, bound_rows, diffuse, mse_rows, schedule
from harmon.model.harmon import Harmon
from harmon.model.head import DiffusionMlp
from harmon.model.mar import Grid


def text_to_image_loss(
    model: Harmon,
    latents: Tensor,
    text_ids: Tensor,
    text_mask: Tensor,
    order: Tensor,
    masked: int,
    timesteps: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean over masked positions; arguments as `Harmon.text_to_image_loss`."""
    tokens_BNC, grid = model.to_tokens(latents)
    mask_BN = torch.zeros(order.shape).scatter(1, order[:, :masked], 1.0)
    x_BSD = _encode(model, tokens_BNC, mask_BN)
    text_BLH = model.llm.model.embed_tokens(text_ids)
    image_BSH = _to_llm(model, x_BSD)
    seen_BT = torch.cat([text_mask, text_mask.new_ones(image_BSH.shape[:2])], 1)
    hidden_BTH = model.llm.model(
        inputs_embeds=torch.cat([text_BLH, image_BSH], 1),
        attention_mask=seen_BT.long(),
        position_ids=(seen_BT.long().cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    z_BNZ = _decode(model, _from_llm(model, x_BSD, hidden_BTH[:, text_ids.shape[1] :]), mask_BN, grid)
    repeats = len(timesteps)
    z, clean, flags = z_BNZ.flatten(0, 1), tokens_BNC.flatten(0, 1), mask_BN.flatten()
    z, clean, flags = z.repeat(repeats, 1), clean.repeat(repeats, 1), flags.repeat(repeats)
    steps, draws = timesteps.flatten(), noise.flatten(0, 2)
    tables = _tables("1000", steps)
    noisy = diffuse(tables, clean, draws)
    output = _head(model.mar.diffloss.net, noisy, steps, z)
    rows = mse_rows(output.chunk(2, -1)[0], draws) + bound_rows(tables, clean, noisy, output)
    return (rows * flags).sum() / flags.sum()


def image_to_text_loss(
    model: Harmon, latents: Tensor, input_ids: Tensor, labels: Tensor, attention_mask: Tensor
) -> Tensor:
    """Mean over labelled tokens, without gradient scaling; arguments as `Harmon.image_to_text_loss`,
    and `attention_mask` [B, L] true at real tokens.
    """
    tokens_BNC, _ = model.to_tokens(latents)
    image_BSH = _to_llm(model, _encode(model, tokens_BNC, torch.zeros(tokens_BNC.shape[:2])))
    hidden_BLH = model.llm.model(
        inputs_embeds=model.prompt_embeddings(input_ids, image_BSH),
        attention_mask=attention_mask.long(),
        use_cache=False,
    ).last_hidden_state
    kept = labels[:, 1:] >= 0
    return F.cross_entropy(model.llm.lm_head(hidden_BLH[:, :-1][kept]), labels[:, 1:][kept])


@torch.no_grad()
def generate(
    model: Harmon,
    autoencoder: KlAutoencoder,
    text_ids: Tensor,
    text_mask: Tensor,
    grid: Grid,
    steps: int,
    cfg: float,
    diffusion_steps: str,
    order: Tensor,
    noises: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Guided latents and pictures of both halves, from one order [B, N] and each AR step's noise [T, B, P, C]."""
    images, positions = order.shape
    order_GN = order.repeat(2, 1)
    cache = DynamicCache(config=model.llm.config)
    model.llm.model(input_ids=text_ids, past_key_values=cache, use_cache=True)
    tokens_GNC = torch.zeros(2 * images, positions, model.config.mar.token_channels)
    mask_GN = torch.ones(2 * images, positions)
    for k in range(steps):
        x_GSD = _encode(model, tokens_GNC, mask_GN)
        image_GSH = _to_llm(model, x_GSD)
        seen_GT = torch.cat([text_mask, text_mask.new_ones(image_GSH.shape[:2])], 1).long()
        length = image_GSH.shape[1]
        hidden_GSH = model.llm.model(
            inputs_embeds=image_GSH,
            attention_mask=seen_GT,
            position_ids=(seen_GT.cumsum(1) - 1).clamp(min=0)[:, -length:],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.crop(-length)
        z_GNZ = _decode(model, _from_llm(model, x_GSD, hidden_GSH), mask_GN, grid)
        left = math.floor(positions * math.cos(math.pi / 2 * (k + 1) / steps))
        left = max(1, min(int(mask_GN[0].sum()) - 1, left)) if k < steps - 1 else 0
        mask_next_GN = torch.zeros_like(mask_GN).scatter(1, order_GN[:, :left], 1.0)
        drawn_GN = mask_GN.bool() ^ mask_next_GN.bool()
        drawn = _draw(model.mar.diffloss.net, z_GNZ[drawn_GN], noises[k], cfg, diffusion_steps)
        tokens_GNC[drawn_GN] = drawn
        mask_GN = mask_next_GN
    latents = model.to_latents(tokens_GNC, grid)
    return latents[:images], autoencoder.decode(latents)


def _encode(model: Harmon, tokens_BNC: Tensor, mask_BN: Tensor) -> Tensor:
    mar = model.mar
    x_BND = mar.z_proj(tokens_BNC)
    buffers_BUD = mar.fake_latent.expand(len(x_BND), mar.config.buffer_size, -1)
    x_BTD = mar.z_proj_ln(torch.cat([buffers_BUD, x_BND], 1) + mar.encoder_pos_embed_learned)
    kept_BT = torch.cat([mask_BN.new_ones(len(mask_BN), mar.config.buffer_size), 1 - mask_BN], 1).bool()
    x_BSD = x_BTD[kept_BT].view(len(x_BND), -1, x_BND.shape[-1])
    for block in mar.encoder_blocks:
        x_BSD = block(x_BSD)
    out: Tensor = mar.encoder_norm(x_BSD)
    return out


def _to_llm(model: Harmon, x_BSD: Tensor) -> Tensor:
    z_BSH, buffers = model.proj_in(x_BSD), model.config.mar.buffer_size
    return torch.cat([z_BSH[:, buffers:], z_BSH[:, :buffers]], 1)


def _from_llm(model: Harmon, x_BSD: Tensor, hidden_BSH: Tensor) -> Tensor:
    buffers = model.config.mar.buffer_size
    hidden_BSH = torch.cat([hidden_BSH[:, -buffers:], hidden_BSH[:, :-buffers]], 1)
    out: Tensor = x_BSD + model.proj_out(hidden_BSH)
    return out


def _decode(model: Harmon, x_BSD: Tensor, mask_BN: Tensor, grid: Grid) -> Tensor:
    mar = model.mar
    buffers = mar.config.buffer_size
    kept_BT = torch.cat([mask_BN.new_ones(len(mask_BN), buffers), 1 - mask_BN], 1).bool()
    x_BTD = mar.mask_token.repeat(len(mask_BN), buffers + grid.positions, 1)
    embedded_BSD = mar.decoder_embed(x_BSD)
    x_BTD = x_BTD.masked_scatter(kept_BT.unsqueeze(-1), embedded_BSD)
    x_BTD = x_BTD + mar.decoder_pos_embed_learned
    for block in mar.decoder_blocks:
        x_BTD = block(x_BTD)
    out: Tensor = mar.decoder_norm(x_BTD)[:, buffers:] + mar.diffusion_pos_embed_learned
    return out


def _draw(net: DiffusionMlp, z_RZ: Tensor, noise_TBPC: Tensor, cfg: float, diffusion_steps: str) -> Tensor:
    """Tokens [R, C] of both halves."""
    state = noise_TBPC[0].flatten(0, 1).repeat(2, 1)
    chain = schedule(diffusion_steps)
    for index in reversed(range(len(chain.timesteps))):
        indices = torch.full((len(state),), index)
        half = state[: len(state) // 2]
        told = torch.from_numpy(chain.timesteps)[indices]
        epsilon, spread = _head(net, torch.cat([half, half]), told, z_RZ).chunk(2, -1)
        cond, uncond = epsilon.chunk(2)
        epsilon = uncond + cfg * (cond - uncond)
        output = torch.cat([epsilon.repeat(2, 1), spread], -1)
        noise = noise_TBPC[len(noise_TBPC) - index].flatten(0, 1).repeat(2, 1) if index else None
        state, _ = ancestral_step(_tables(diffusion_steps, indices), state, output, noise)
    final = state[: len(state) // 2]
    return torch.cat([final, final])


def _head(net: DiffusionMlp, noisy: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
    condition = net.time_embed(timesteps) + net.cond_embed(z)
    x = net.input_proj(noisy)
    for block in net.res_blocks:
        shift, scale, gate = block.adaLN_modulation(condition).chunk(3, -1)
        x = x + gate * block.mlp(block.in_ln(x) * (1 + scale) + shift)
    final = net.final_layer
    shift, scale = final.adaLN_modulation(condition).chunk(2, -1)
    out: Tensor = final.linear(final.norm_final(x) * (1 + scale) + shift)
    return out


def _tables(respacing: str, index: Tensor) -> Tables:
    """The entries of `index`, each table brought from NumPy at each look-up."""
    chain = schedule(respacing)
    alphas = chain.alphas_cumprod
    places = index.numpy()
    values = {
        "timesteps": chain.timesteps,
        "sqrt_alphas_cumprod": alphas**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - alphas) ** 0.5,
        "sqrt_recip_alphas_cumprod": (1 / alphas) ** 0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / alphas - 1) ** 0.5,
        "log_betas": [math.log(beta) for beta in chain.betas],
        "posterior_log_variance_clipped": chain.posterior_log_variance_clipped,
        "posterior_mean_coef1": chain.posterior_mean_coef1,
        "posterior_mean_coef2": chain.posterior_mean_coef2,
    }
    return Tables(
        **{
            name: torch.as_tensor(table)[places].to(torch.int64 if name == "timesteps" else torch.float32).unsqueeze(-1)
            for name, table in values.items()
        }
    )
