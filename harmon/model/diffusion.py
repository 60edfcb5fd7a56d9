"""The token diffusion: cosine schedule, respacing, training loss and one ancestral step.

Epsilon prediction with a learned variance range (Nichol and Dhariwal, arXiv 2102.09672), as MAR uses it for
the continuous tokens. Everything here is float32 whatever the weights are: the first reverse step of a
respaced chain multiplies an error of epsilon by hundreds to thousands.

Shape letters: R rows (any leading shape), C token channels, T diffusion steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harmon.model.config import TRAIN_STEPS
from pipelines.errors import ConfigurationError

MAX_BETA = 0.999  # arXiv 2102.09672, section 3.2
_BIN = 1 / 255  # half the width of an 8-bit bin over [-1, 1], in the likelihood of timestep 0
_TINY = 1e-12


@dataclass(frozen=True)
class Schedule:
    """Float64 tables of a chain of T steps, index 0 the least noisy.

    `timesteps` are the training timesteps of the kept steps: what the network is told.
    """

    timesteps: NDArray[np.int64]
    betas: NDArray[np.float64]
    alphas_cumprod: NDArray[np.float64]
    posterior_variance: NDArray[np.float64]
    posterior_log_variance_clipped: NDArray[np.float64]
    posterior_mean_coef1: NDArray[np.float64]
    posterior_mean_coef2: NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """What the loss and the sampler look up, float32 [T] on one device (`timesteps` int64)."""

    timesteps: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    log_betas: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def at(self, index: Tensor | int) -> Tables:
        """The entries of steps `index`, with a trailing axis that broadcasts over channels."""
        return Tables(**{field.name: getattr(self, field.name)[index].unsqueeze(-1) for field in fields(self)})


def kept_timesteps(respacing: str) -> list[int]:
    """Training timesteps that a respaced chain keeps, ascending.

    "100" spreads 100 over all; "10,5" spreads 10 over the first half and 5 over the second. Positions advance
    by a float stride and are rounded half to even, as in the code of arXiv 2102.09672, ties included. "ddim50"
    advances from 0 by the smallest whole stride that keeps 50 (arXiv 2010.02502's spacing, whatever the sampler).
    """
    if respacing.startswith("ddim"):
        return _at_whole_stride(respacing)
    counts = [int(count) for count in respacing.split(",")]
    size, larger = divmod(TRAIN_STEPS, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < larger)
        if count > length:
            raise ConfigurationError(
                f"respacing {respacing!r} asks {count} steps of a section of {length}; ask at most {length}"
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    if not kept:
        raise ConfigurationError(f"respacing {respacing!r} keeps no step; ask at least 1")
    return kept


def _at_whole_stride(respacing: str) -> list[int]:
    wanted = int(respacing.removeprefix("ddim"))
    for stride in range(1, TRAIN_STEPS + 1):
        kept = range(0, TRAIN_STEPS, stride)
        if len(kept) == wanted:
            return list(kept)
    raise ConfigurationError(
        f"respacing {respacing!r}: no whole stride through {TRAIN_STEPS} steps keeps {wanted} of them; "
        "ask another number, or leave ddim out"
    )


def train_alphas_cumprod() -> NDArray[np.float64]:
    """Cumulative signal share of the 1,000-step cosine schedule (arXiv 2102.09672, eq. 17), float64."""

    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = [(step / TRAIN_STEPS, (step + 1) / TRAIN_STEPS) for step in range(TRAIN_STEPS)]
    betas = np.array([min(1 - signal(after) / signal(before), MAX_BETA) for before, after in steps])
    return np.asarray(np.cumprod(1.0 - betas))


@lru_cache
def schedule(respacing: str = str(TRAIN_STEPS)) -> Schedule:
    """Tables of the chain that keeps the timesteps of `respacing`."""
    timesteps = np.array(kept_timesteps(respacing), dtype=np.int64)
    alphas_cumprod = train_alphas_cumprod()[timesteps]
    previous = np.append(1.0, alphas_cumprod[:-1])
    betas = 1.0 - alphas_cumprod / previous
    alphas_cumprod = np.cumprod(1.0 - betas)
    previous = np.append(1.0, alphas_cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
    # The variance of index 0 is zero: its logarithm is taken from index 1 (in a one-step chain, from beta).
    clipped = np.append(variance[1] if len(variance) > 1 else betas[0], variance[1:])
    return Schedule(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(clipped),
        posterior_mean_coef1=betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
        posterior_mean_coef2=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
    )


@lru_cache(maxsize=TRAIN_STEPS)  # so that a generation that anneals, with a chain an AR step, finds all of its own
def tables(respacing: str, device: torch.device) -> Tables:
    """Float32 look-up tables of `schedule(respacing)` on `device`, made once."""
    chain = schedule(respacing)
    alphas = chain.alphas_cumprod

    def on_device(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).float().to(device)

    with torch.inference_mode(False):  # made once and kept: a later training step must be able to use them
        return Tables(
            timesteps=torch.from_numpy(chain.timesteps).to(device),
            sqrt_alphas_cumprod=on_device(np.sqrt(alphas)),
            sqrt_one_minus_alphas_cumprod=on_device(np.sqrt(1.0 - alphas)),
            sqrt_recip_alphas_cumprod=on_device(np.sqrt(1.0 / alphas)),
            sqrt_recipm1_alphas_cumprod=on_device(np.sqrt(1.0 / alphas - 1.0)),
            log_betas=on_device(np.log(chain.betas)),
            posterior_log_variance_clipped=on_device(chain.posterior_log_variance_clipped),
            posterior_mean_coef1=on_device(chain.posterior_mean_coef1),
            posterior_mean_coef2=on_device(chain.posterior_mean_coef2),
        )


def diffuse(steps: Tables, clean: Tensor, noise: Tensor) -> Tensor:
    """Noisy tokens at `steps` (an `at`): [R, C] from clean tokens and unit noise [R, C]."""
    return steps.sqrt_alphas_cumprod * clean + steps.sqrt_one_minus_alphas_cumprod * noise


def log_variance(steps: Tables, range_RC: Tensor) -> Tensor:
    """Log variance of the reverse step from the network's unbounded range output (2102.09672, eq. 15)."""
    share_RC = (range_RC + 1) / 2
    return share_RC * steps.log_betas + (1 - share_RC) * steps.posterior_log_variance_clipped


def clean_from_epsilon(steps: Tables, noisy: Tensor, epsilon: Tensor) -> Tensor:
    """The clean tokens that `noisy` and the predicted `epsilon` imply."""
    return steps.sqrt_recip_alphas_cumprod * noisy - steps.sqrt_recipm1_alphas_cumprod * epsilon


def posterior_mean(steps: Tables, clean: Tensor, noisy: Tensor) -> Tensor:
    """Mean of q(previous | noisy, clean)."""
    return steps.posterior_mean_coef1 * clean + steps.posterior_mean_coef2 * noisy


def mse_rows(epsilon: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of epsilon over channels: [R]."""
    return (noise - epsilon).square().mean(-1)


def bound_rows(steps: Tables, clean: Tensor, noisy: Tensor, output: Tensor) -> Tensor:
    """The variational bound of each row in bits per channel, [R]; it teaches the variance only.

    `output` [R, 2C] is the network's (epsilon, range); the gradient into epsilon is stopped.
    """
    epsilon_RC, range_RC = output.chunk(2, -1)
    mean_RC = posterior_mean(steps, clean_from_epsilon(steps, noisy, epsilon_RC.detach()), noisy)
    log_variance_RC = log_variance(steps, range_RC)
    true_mean_RC = posterior_mean(steps, clean, noisy)
    true_log_variance_R1 = steps.posterior_log_variance_clipped
    divergence_RC = 0.5 * (
        -1.0
        + log_variance_RC
        - true_log_variance_R1
        + torch.exp(true_log_variance_R1 - log_variance_RC)
        + (true_mean_RC - mean_RC).square() * torch.exp(-log_variance_RC)
    )
    likelihood_RC = _binned_log_likelihood(clean, mean_RC, 0.5 * log_variance_RC)
    nats_RC = torch.where(steps.timesteps == 0, -likelihood_RC, divergence_RC)
    return nats_RC.mean(-1) / math.log(2.0)


def _binned_log_likelihood(values: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log likelihood of `values` under a Gaussian cut into 8-bit bins of [-1, 1], open at both ends."""
    centred = values - mean
    precision = torch.exp(-log_deviation)
    below_upper = _normal_cdf(precision * (centred + _BIN))
    below_lower = _normal_cdf(precision * (centred - _BIN))
    inner = torch.log((below_upper - below_lower).clamp(min=_TINY))
    upper = torch.log((1.0 - below_lower).clamp(min=_TINY))
    lower = torch.log(below_upper.clamp(min=_TINY))
    return torch.where(values < -0.999, lower, torch.where(values > 0.999, upper, inner))


def _normal_cdf(values: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function that the original loss uses."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (values + 0.044715 * values.pow(3))))


def guided(output_cond: Tensor, output_uncond: Tensor, cfg: float | Tensor) -> Tensor:
    """Classifier-free guidance on epsilon; the range output is the conditional one. All [R, 2C]; a tensor `cfg`
    [R, 1] guides each row by its own.
    """
    epsilon_cond, range_cond = output_cond.chunk(2, -1)
    epsilon_uncond, _ = output_uncond.chunk(2, -1)
    return torch.cat([epsilon_uncond + cfg * (epsilon_cond - epsilon_uncond), range_cond], -1)


def ancestral_step(
    steps: Tables,
    noisy: Tensor,
    output: Tensor,
    noise: Tensor | None,
    temperature: float = 1.0,
    clip_x0: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One reverse step: (sample, predicted clean tokens), both [R, C] float32.

    `output` [R, 2C] is the network's (epsilon, range); `noise` None makes the last, noiseless step. `clip_x0`
    None is the paper; a value bounds the predicted clean tokens to [-clip_x0, clip_x0] and takes the mean
    from them.
    """
    epsilon_RC, range_RC = output.float().chunk(2, -1)
    clean_RC = clean_from_epsilon(steps, noisy, epsilon_RC)
    if clip_x0 is not None:
        clean_RC = clean_RC.clamp(-clip_x0, clip_x0)
    mean_RC = posterior_mean(steps, clean_RC, noisy)
    if noise is None:
        return mean_RC, clean_RC
    deviation_RC = torch.exp(0.5 * log_variance(steps, range_RC))
    return mean_RC + deviation_RC * noise * temperature, clean_RC


def solver_step(
    steps: Tables,
    following: Tables,
    noisy: Tensor,
    clean: Tensor,
    earlier: tuple[Tables, Tensor] | None,
    noise: Tensor,
) -> Tensor:
    """One step of SDE-DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2, and its stochastic form in appendix B).

    From `noisy` [R, C] at `steps` to the less noisy `following`, given the predicted `clean` tokens; `earlier`
    holds the step before and what it predicted, from which the second order comes (None: first order).
    """
    stride = _log_ratio(following) - _log_ratio(steps)  # h, of half the log signal-to-noise ratio
    decay, gained = torch.exp(-stride), -torch.expm1(-2 * stride)
    if earlier is not None:
        past, clean_past = earlier
        ratio = stride / (_log_ratio(steps) - _log_ratio(past))
        clean = clean + 0.5 * ratio * (clean - clean_past)
    sigma, sigma_next = steps.sqrt_one_minus_alphas_cumprod, following.sqrt_one_minus_alphas_cumprod
    mean = sigma_next / sigma * decay * noisy + following.sqrt_alphas_cumprod * gained * clean
    return mean + sigma_next * gained.sqrt() * noise


def _log_ratio(steps: Tables) -> Tensor:
    return torch.log(steps.sqrt_alphas_cumprod / steps.sqrt_one_minus_alphas_cumprod)
