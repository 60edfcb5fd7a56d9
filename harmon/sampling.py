"""Drawing images and answering questions with a trained Harmon.

Generation (paper, section 3.3; MAR, section 3.4) starts from a fully masked canvas. Each of K iterations ("AR
steps") encodes the visible tokens, passes them through the LLM behind the prompt, decodes, and draws some
masked tokens with the diffusion head, most of them late: the masked share follows a cosine.

Shape letters: B images, G prompt rows (2B with guidance, conditional first; else B), L prompt length, N
positions, M visible positions, P positions drawn in an iteration, U buffer, S = M + U, C token channels, T
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
from transformers import DynamicCache

from harmon.model.diffusion import ancestral_step, guided, tables
from harmon.model.harmon import Harmon
from harmon.model.head import DiffusionHead
from harmon.model.mar import Grid
from pipelines.errors import ConfigurationError

CfgSchedule = Literal["constant", "linear"]


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
    """What one AR step does: of `masked` positions it leaves `masked_next`, under guidance `cfg`."""

    masked: int
    masked_next: int
    cfg: float


def plan(positions: int, steps: int, cfg: float, cfg_schedule: CfgSchedule) -> list[Iteration]:
    """The iterations of K = `steps` over `positions`: the share still masked follows a cosine.

    Each but the last leaves at least one position, so with more steps than positions the superfluous ones
    draw nothing. "linear" guidance grows with the share drawn.
    """
    iterations = []
    masked = positions
    for k in range(steps):
        share = math.cos(math.pi / 2 * (k + 1) / steps)
        masked_next = max(1, min(masked - 1, math.floor(positions * share)))
        drawn = (positions - masked_next) / positions
        scale = cfg if cfg_schedule == "constant" else 1 + (cfg - 1) * drawn
        if k == steps - 1:
            masked_next = 0
        iterations.append(Iteration(masked, masked_next, scale))
        masked = masked_next
    return iterations


class PromptedImage:
    """Right-padded prompts whose keys and values the LLM keeps, before images that change behind them."""

    def __init__(self, model: Harmon, text_ids: Tensor, text_mask: Tensor, grid: Grid) -> None:
        self.model, self.grid = model, grid
        self.text_mask_GL = text_mask.long()
        self.cache = DynamicCache(config=model.llm.config)
        model.llm.model(input_ids=text_ids, past_key_values=self.cache, use_cache=True)

    def encode(self, tokens_BNC: Tensor, visible_BM: Tensor) -> Tensor:
        """Encoder outputs informed by the prompts, [G, S, D]; the encoder runs once an image."""
        x_BSD, image_BSH = self.model.visual_features(tokens_BNC, self.grid, visible_BM)
        copies = len(self.text_mask_GL) // len(x_BSD)
        image_GSH = image_BSH.repeat(copies, 1, 1)
        seen_GT = torch.cat([self.text_mask_GL, self.text_mask_GL.new_ones(image_GSH.shape[:2])], 1)
        length = image_GSH.shape[1]
        hidden_GSH = self.model.llm.model(
            inputs_embeds=image_GSH,
            attention_mask=seen_GT,
            position_ids=(seen_GT.cumsum(1) - 1).clamp(min=0)[:, -length:],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.cache.crop(-length)
        return self.model.inform(x_BSD.repeat(copies, 1, 1), hidden_GSH)


def draw_tokens(
    head: DiffusionHead,
    z_GPZ: Tensor,
    noise_TBPC: Tensor,
    cfg: float,
    diffusion_steps: str,
    temperature: float = 1.0,
    clip_x0: float | None = None,
) -> Tensor:
    """Tokens [B, P, C] float32 for decoder outputs of B rows, or of B conditional then B unconditional ones.

    The state stays float32 under any weights. The first reverse step of a respaced chain multiplies an error
    of epsilon by hundreds; `clip_x0` (None: the paper) bounds the predicted clean token and with it that
    error.
    """
    chain = tables(diffusion_steps, z_GPZ.device)
    steps, images = noise_TBPC.shape[:2]
    rows = z_GPZ.view(-1, images, *z_GPZ.shape[1:])  # [1 or 2, B, P, Z]
    embedded = head.net.cond_embed(rows)
    tokens_BPC = noise_TBPC[0]
    for index in reversed(range(steps)):
        output = head.net(tokens_BPC, chain.timesteps[index], embedded).float()
        combined = guided(output[0], output[1], cfg) if len(output) == 2 else output[0]
        noise_BPC = noise_TBPC[steps - index] if index else None
        tokens_BPC, _ = ancestral_step(
            chain.at(index), tokens_BPC, combined, noise_BPC, temperature=temperature, clip_x0=clip_x0
        )
    return tokens_BPC


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
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    draws: Draws | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw latents [B, channels, h, w] float32, `grid` being (h, w); defaults are the paper's.

    With `cfg` 1 `text_ids` [G, L] (right padded, mask [G, L] true at real tokens) holds B prompts; otherwise
    B prompts and then their B unconditional ones. `steps` is K, the AR steps; `diffusion_steps` defaults to
    the model's. `generator` is one CPU generator, or one for each image, which then depends on nothing else
    in the batch; `draws` replaces them all. `on_step` is told after each AR step how many are done, and the
    latents so far, undrawn tokens zero. ConfigurationError where the arguments do not fit.
    """
    guide = cfg != 1
    if len(text_ids) % (1 + guide) or not len(text_ids) or steps < 1:
        raise ConfigurationError(
            f"{len(text_ids)} prompts cannot be drawn with guidance {cfg} in {steps} AR steps; give at least "
            "one prompt and one step, and unless guidance is 1 as many unconditional prompts behind them"
        )
    copies = 1 + guide
    images = len(text_ids) // copies
    patch = model.config.mar.patch_size
    tokens_grid = Grid(grid[0] // patch, grid[1] // patch)
    positions, channels = tokens_grid.positions, model.config.mar.token_channels
    respacing = str(diffusion_steps or model.config.head.sampling_steps)
    chain_length = len(tables(respacing, model.device).timesteps)
    draws = draws or GeneratorDraws.of(generator, images)
    with evaluating(model):
        order_BN = draws.orders(images, positions).to(model.device)
        prompted = PromptedImage(model, text_ids, text_mask, tokens_grid)
        tokens_BNC = torch.zeros(images, positions, channels, device=model.device)
        for done, turn in enumerate(plan(positions, steps, cfg, cfg_schedule), 1):
            if turn.masked_next == turn.masked:
                continue
            visible_BM = order_BN[:, turn.masked :].sort(1).values
            drawn_BP = order_BN[:, turn.masked_next : turn.masked].sort(1).values
            x_GSD = prompted.encode(tokens_BNC, visible_BM)
            visible_GM, drawn_GP = visible_BM.repeat(copies, 1), drawn_BP.repeat(copies, 1)
            z_GPZ = model.mar.decode(x_GSD, tokens_grid, visible_GM, drawn_GP)
            noise_TBPC = draws.noise(chain_length, images, drawn_BP.shape[1], channels).to(model.device)
            drawn_BPC = draw_tokens(model.mar.diffloss, z_GPZ, noise_TBPC, turn.cfg, respacing, temperature, clip_x0)
            tokens_BNC = tokens_BNC.scatter(1, drawn_BP.unsqueeze(-1).expand_as(drawn_BPC), drawn_BPC)
            if on_step:
                on_step(done, model.to_latents(tokens_BNC, tokens_grid))
    return model.to_latents(tokens_BNC, tokens_grid)


def answer_logits(
    model: Harmon, latents: Tensor | None, input_ids: Tensor, mask: Tensor
) -> Generator[Tensor, Tensor | None, None]:
    """Logits [B, V] float32 of one token after another; without end. Each token is the one that was sent in
    answer to its logits, int64 [B], or the most likely.

    `latents` [B, channels, h, w] fill the image slots of `input_ids` [B, L]; None for text alone. Prompts may
    be padded on either side, as `mask` [B, L] says; positions count real tokens.
    """
    image_BSH = None if latents is None else model.visual_features(*model.to_tokens(latents))[1]
    seen_BT = mask.long()
    embeddings = model.prompt_embeddings(input_ids, image_BSH)
    last_B = (seen_BT * torch.arange(seen_BT.shape[1], device=seen_BT.device)).argmax(1)
    cache = DynamicCache(config=model.llm.config)
    while True:
        positions = (seen_BT.cumsum(1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        hidden = model.llm.model(
            inputs_embeds=embeddings,
            attention_mask=seen_BT,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        rows_B = torch.arange(len(hidden), device=hidden.device)
        logits: Tensor = model.llm.lm_head(hidden[rows_B, last_B]).float()
        sent_B = yield logits
        spoken_B = logits.argmax(-1) if sent_B is None else sent_B
        embeddings = model.llm.model.embed_tokens(spoken_B.unsqueeze(1))
        last_B = torch.zeros_like(last_B)
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(seen_BT), 1)], 1)


@contextmanager
def evaluating(model: Harmon) -> Iterator[None]:
    """Drop-out off inside, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
