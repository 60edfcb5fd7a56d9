"""Drawing images and answering questions with a trained Harmon.

Generation (paper, section 3.3; MAR, section 3.4) starts from a fully masked canvas. Each of K iterations ("AR
steps") encodes the visible tokens, passes them through the LLM behind the prompt, decodes, and draws some
masked tokens with the diffusion head, most of them late: the masked share follows a cosine.

Shape letters: B images, G prompt rows (2B with guidance, conditional first; else B), L prompt length, N
positions, M visible positions, P positions drawn in an iteration, S = M and the buffers, C token channels, T
diffusion steps, D encoder width, Z decoder width, H LLM width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from harmon.model.diffusion import ancestral_step, clean_from_epsilon, guided, solver_step, tables
from harmon.model.harmon import Harmon
from harmon.model.head import DiffusionHead
from harmon.model.language import KeyValues, positions_of, read_causally
from harmon.model.mar import Grid, take
from harmon.prompted import PromptedImage, bucket
from harmon.token_cache import TokenCache
from pipelines.errors import ConfigurationError

CfgSchedule = Literal["constant", "linear"]
Sampler = Literal["ddpm", "dpm++"]
_ANSWER_ROOM = 64  # new tokens that an answer's memory holds at first
_ROWS = 512  # conditions of the head at once: a matrix product's full speed, and 120 MB for the largest published head


class Draws(Protocol):
    """Where the randomness of a generation comes from."""

    def orders(self, images: int, positions: int) -> Tensor:
        """A permutation of the positions for each image, int64 [B, N]; its first entry is drawn last."""

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        """Unit noise of an iteration, float32 [T, B, P, C]: the start, then that of all but the last step."""


class GeneratorDraws:
    """Draws from one CPU generator an image, so that an image does not depend on the rest of its batch."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    @classmethod
    def of(cls, generator: torch.Generator | Sequence[torch.Generator] | None, images: int) -> GeneratorDraws:
        """One generator each; a single one (None: torch's own) seeds one for each image."""
        if generator is None or isinstance(generator, torch.Generator):
            seeds = torch.randint(2**62, (images,), generator=generator).tolist()
            generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        if len(generator) != images:
            raise ConfigurationError(f"{len(generator)} generators cannot draw {images} images; give one each")
        return cls(generator)

    def orders(self, images: int, positions: int) -> Tensor:
        return torch.stack([torch.randperm(positions, generator=generator) for generator in self.generators])

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        shape = (steps, predicted, channels)
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators], 1)


@dataclass(frozen=True)
class Iteration:
    """What one AR step does: of `masked` positions it leaves `masked_next`, under guidance `cfg` (1: none)."""

    masked: int
    masked_next: int
    cfg: float


def plan(
    positions: int,
    steps: int,
    cfg: float,
    cfg_schedule: CfgSchedule,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
) -> list[Iteration]:
    """The iterations of K = `steps` over `positions`: the share still masked follows a cosine.

    Each but the last leaves at least one position, so with more steps than positions the superfluous ones
    draw nothing. "linear" guidance grows with the share drawn; outside `cfg_interval` of the steps it is 1.
    """
    iterations = []
    masked = positions
    for k in range(steps):
        share = math.cos(math.pi / 2 * (k + 1) / steps)
        masked_next = max(1, min(masked - 1, math.floor(positions * share)))
        drawn = (positions - masked_next) / positions
        scale = cfg if cfg_schedule == "constant" else 1 + (cfg - 1) * drawn
        if not cfg_interval[0] <= k / steps < cfg_interval[1]:
            scale = 1.0
        if k == steps - 1:
            masked_next = 0
        iterations.append(Iteration(masked, masked_next, scale))
        masked = masked_next
    return iterations


def annealed(diffusion_steps: str, last: int | None, step: int, steps: int) -> str:
    """Respacing of AR step `step` of `steps`: from `diffusion_steps` in the first to `last` in the last, on a
    line (DiSA, arXiv 2505.20297); `last` None: always `diffusion_steps`.
    """
    if last is None or steps == 1:
        return diffusion_steps
    return str(int((steps - 1 - step) / (steps - 1) * (int(diffusion_steps) - last)) + last)


def draw_tokens(
    head: DiffusionHead,
    z_GPZ: Tensor,
    noise_TBPC: Tensor,
    cfg: float | Tensor,
    diffusion_steps: str,
    temperature: float = 1.0,
    clip_x0: float | None = None,
    sampler: Sampler = "ddpm",
    padded: int | None = None,
) -> Tensor:
    """Tokens [B, P, C] float32 for decoder outputs of B rows, or of B conditional then B unconditional ones.
    They are computed as `padded` of them, for a shape that comes again. A tensor `cfg` [P, 1] guides each position by
    its own; it takes no `padded`.

    The state stays float32 under any weights. The first reverse step of a respaced chain multiplies an error
    of epsilon by hundreds; `clip_x0` (None: the paper) bounds the predicted clean token and with it that
    error.
    """
    chain = tables(diffusion_steps, z_GPZ.device)
    steps, images, real = noise_TBPC.shape[:3]
    if padded is not None:
        z_GPZ = F.pad(z_GPZ, (0, 0, 0, padded - real))
        noise_TBPC = F.pad(noise_TBPC, (0, 0, 0, padded - real))
    rows = z_GPZ.view(-1, images, *z_GPZ.shape[1:])  # [1 or 2, B, P, Z]
    tokens_BPC, earlier = noise_TBPC[0], None
    for index, modulations in zip(reversed(range(steps)), _modulations(head, chain.timesteps, rows)):
        output = head.net.predict(tokens_BPC, modulations).float()
        combined = guided(output[0], output[1], cfg) if len(output) == 2 else output[0]
        here, noise_BPC = chain.at(index), noise_TBPC[steps - index] if index else None
        if sampler == "ddpm":
            tokens_BPC, _ = ancestral_step(here, tokens_BPC, combined, noise_BPC, temperature, clip_x0)
            continue
        clean_BPC = clean_from_epsilon(here, tokens_BPC, combined.chunk(2, -1)[0])
        if clip_x0 is not None:
            clean_BPC = clean_BPC.clamp(-clip_x0, clip_x0)
        if noise_BPC is None:
            return clean_BPC[:, :real]
        # The last stride is several times the one before: from so near, the second order would overshoot.
        before = earlier if index > 1 else None
        tokens_BPC = solver_step(here, chain.at(index - 1), tokens_BPC, clean_BPC, before, temperature * noise_BPC)
        earlier = (here, clean_BPC)
    return tokens_BPC[:, :real]


def _modulations(head: DiffusionHead, timesteps_T: Tensor, z: Tensor) -> Iterator[list[Tensor]]:
    """The head's modulations of each diffusion step, the noisiest first, for decoder outputs [1 or 2, B, P, Z].

    They depend on no token, so those of several steps are one product: few rows alone would spend their time on
    reading weights.
    """
    embedded, times_TW = head.net.cond_embed(z), head.net.time_embed(timesteps_T)
    together = max(1, _ROWS // z[..., 0].numel())
    for end in range(len(times_TW), 0, -together):
        times = times_TW[max(0, end - together) : end]
        found = head.net.modulations(times[:, None, None, None] + embedded)
        for step in reversed(range(len(times))):
            yield [one[step] for one in found]


@torch.no_grad()
def generate(
    model: Harmon,
    text_ids: Tensor,
    text_mask: Tensor,
    grid: tuple[int, int],
    *,
    steps: int = 64,
    cfg: float = 3.0,
    cfg_schedule: CfgSchedule = "constant",
    diffusion_steps: int | str | None = None,
    temperature: float = 1.0,
    clip_x0: float | None = None,
    diffusion_steps_last: int | None = None,
    sampler: Sampler = "ddpm",
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    cfg_every: int = 1,
    refresh_every: int = 1,
    buckets: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    draws: Draws | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw latents [B, channels, h, w] float32, `grid` being (h, w); defaults are the paper's.

    With `cfg` 1 `text_ids` [G, L] (right padded, mask [G, L] true at real tokens) holds B prompts; otherwise
    B prompts and then their B unconditional ones. `steps` is K, the AR steps; `diffusion_steps` defaults to
    the model's; the approximations are those of `harmon.sampling_config.SamplingConfig`. `generator` is one CPU
    generator, or one for each image, which then depends on nothing else in the batch; `draws` replaces them all.
    `buckets` pads the numbers of visible and of drawn tokens to powers of two, exactly: for a model whose regions
    are compiled (`harmon.model.compiled`). `on_step` is called after each AR step with the number done and the
    latents so far, zero where nothing is drawn yet. From one AR step to the next the host waits for no GPU.
    ConfigurationError where the arguments do not fit.
    """
    guide = cfg != 1
    if len(text_ids) % (1 + guide) or not len(text_ids) or steps < 1:
        raise ConfigurationError(
            f"{len(text_ids)} prompts cannot be drawn with guidance {cfg} in {steps} AR steps; give at least "
            "one prompt and one step, and unless guidance is 1 as many unconditional prompts behind them"
        )
    images = len(text_ids) // (1 + guide)
    patch = model.config.mar.patch_size
    tokens_grid = Grid(grid[0] // patch, grid[1] // patch)
    positions, channels = tokens_grid.positions, model.config.mar.token_channels
    respacing = str(diffusion_steps or model.config.head.sampling_steps)
    if diffusion_steps_last is not None and not respacing.isdigit():
        raise ConfigurationError(f"diffusion steps {respacing!r} cannot be annealed; give a single number of them")
    draws = draws or GeneratorDraws.of(generator, images)
    with evaluating(model):
        order_BN = draws.orders(images, positions).to(model.device)
        prompted = PromptedImage(model, text_ids, text_mask, tokens_grid)
        cache = TokenCache(prompted, images, refresh_every) if refresh_every > 1 else None
        conditions = _Conditions(prompted, images, cfg_every, cache, buckets)
        tokens_BNC = torch.zeros(images, positions, channels, device=model.device)
        chains = [annealed(respacing, diffusion_steps_last, k, steps) for k in range(steps)]
        lengths = {chain: len(tables(chain, model.device).timesteps) for chain in chains}  # made now, then looked up
        for k, turn in enumerate(plan(positions, steps, cfg, cfg_schedule, cfg_interval)):
            if turn.masked_next < turn.masked:
                visible_BM = order_BN[:, turn.masked :].sort(1).values
                drawn_BP = order_BN[:, turn.masked_next : turn.masked].sort(1).values
                z_GPZ = conditions.decode(tokens_BNC, visible_BM, drawn_BP, guide and turn.cfg != 1)
                noise = draws.noise(lengths[chains[k]], images, drawn_BP.shape[1], channels)
                noise_TBPC = _sent(noise, model.device)
                padded = bucket(drawn_BP.shape[1]) if buckets else None
                drawn_BPC = draw_tokens(
                    model.mar.diffloss, z_GPZ, noise_TBPC, turn.cfg, chains[k], temperature, clip_x0, sampler, padded
                )
                tokens_BNC = tokens_BNC.scatter(1, drawn_BP.unsqueeze(-1).expand_as(drawn_BPC), drawn_BPC)
            if on_step is not None:
                on_step(k + 1, model.to_latents(tokens_BNC, tokens_grid))
    return model.to_latents(tokens_BNC, tokens_grid)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`. A GPU takes them from pinned memory when it gets there, and the host goes on: it draws
    the next noise while the GPU still computes.
    """
    if values.device.type == "cpu" and device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class _Conditions:
    """Decoder outputs under the prompts; the unconditional half is computed anew in every `every`-th guided step.

    Between those, a position's unconditional output is its conditional one plus the difference last seen there.
    """

    def __init__(
        self, prompted: PromptedImage, images: int, every: int, cache: TokenCache | None, buckets: bool
    ) -> None:
        self.prompted, self.images, self.every, self.cache, self.buckets = prompted, images, every, cache, buckets
        self.gap_BNZ: Tensor | None = None
        self.age = 0

    def decode(self, tokens_BNC: Tensor, visible_BM: Tensor, drawn_BP: Tensor, guided: bool) -> Tensor:
        """[B, P, Z] at the positions drawn, or [2B, P, Z] where `guided`: conditional first."""
        if guided and self.gap_BNZ is not None and self.age < self.every:
            self.age += 1
            z_BPZ = self._decode(tokens_BNC, visible_BM, drawn_BP, 1)
            return torch.cat([z_BPZ, z_BPZ + take(self.gap_BNZ, drawn_BP)])
        if not guided or self.every == 1:
            return self._decode(tokens_BNC, visible_BM, drawn_BP, 1 + guided)
        z_GNZ = self._decode(tokens_BNC, visible_BM, None, 2)
        self.gap_BNZ, self.age = z_GNZ[self.images :] - z_GNZ[: self.images], 1
        return take(z_GNZ, drawn_BP.repeat(2, 1))

    def _decode(self, tokens_BNC: Tensor, visible_BM: Tensor, drawn_BP: Tensor | None, copies: int) -> Tensor:
        if self.cache is not None:
            return self.cache.decode(tokens_BNC, visible_BM, drawn_BP, copies)
        padded = bucket(visible_BM.shape[1]) if self.buckets else None
        x_GSD = self.prompted.encode(tokens_BNC, visible_BM, copies, padded)
        drawn_GP = None if drawn_BP is None else drawn_BP.repeat(copies, 1)
        return self.prompted.model.mar.decode(x_GSD, self.prompted.grid, visible_BM.repeat(copies, 1), drawn_GP)


def answer_logits(
    model: Harmon, latents: Tensor | None, input_ids: Tensor, mask: Tensor
) -> Generator[Tensor, Tensor | None, None]:
    """Logits [B, V] float32 of one token after another; without end. Each token is the one that was sent in
    answer to its logits, int64 [B], or the most likely.

    `latents` [B, channels, h, w] fill the image slots of `input_ids` [B, L]; None for text alone. Prompts may
    be padded on either side, as `mask` [B, L] says; positions count real tokens.
    """
    image_BSH = None if latents is None else model.picture_embeddings(latents)
    llm, seen_BT = model.llm.model, mask.bool()
    unpadded = bool(seen_BT.all())  # then each new token is attended without a mask
    embeddings = model.prompt_embeddings(input_ids, image_BSH)
    last_B1 = (seen_BT * torch.arange(seen_BT.shape[1], device=seen_BT.device)).argmax(1, keepdim=True)
    past = KeyValues(llm, len(input_ids), input_ids.shape[1] + _ANSWER_ROOM)
    while True:
        positions = positions_of(seen_BT)[:, past.length :]
        seen = None if unpadded else seen_BT
        hidden_B1H = read_causally(llm, embeddings, positions=positions, read_BR=last_B1, seen=seen, past=past)
        logits: Tensor = model.llm.lm_head(hidden_B1H[:, 0]).float()
        sent_B = yield logits
        spoken_B = logits.argmax(-1) if sent_B is None else sent_B
        embeddings = llm.embed_tokens(spoken_B.unsqueeze(1))
        last_B1 = torch.zeros_like(last_B1)
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(seen_BT), 1)], 1)


@contextmanager
def evaluating(model: Harmon) -> Iterator[None]:
    """Drop-out off inside, and afterwards each module as it was: its parts may be in other modes than the model."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
