import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harmon.model.diffusion import (
    ancestral_step,
    bound_rows,
    diffuse,
    guided,
    kept_timesteps,
    mse_rows,
    schedule,
    tables,
    train_alphas_cumprod,
)
from pipelines.errors import ConfigurationError

torch.set_num_threads(1)
CPU = torch.device("cpu")


def test_the_papers_hundred_steps_are_spread_over_all_thousand() -> None:
    kept = kept_timesteps("100")
    assert kept == [round(i * 999 / 99) for i in range(100)]
    assert (kept[0], kept[-1]) == (0, 999)


def test_ties_round_to_even_and_sections_are_spread_by_themselves() -> None:
    assert kept_timesteps("7") == [0, 166, 333, 500, 666, 832, 999]
    assert kept_timesteps("3,1,2") == [0, 166, 333, 334, 667, 999]
    assert kept_timesteps("2,0,1") == [0, 333, 667]


def test_a_whole_stride_keeps_as_many_as_asked_or_is_refused() -> None:
    assert kept_timesteps("ddim50") == list(range(0, 1000, 20))
    assert kept_timesteps("ddim1") == [0]
    with pytest.raises(ConfigurationError, match="ddim999"):
        kept_timesteps("ddim999")


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_chain_keeps_as_many_distinct_timesteps_as_asked_in_order(counts: list[int]) -> None:
    kept = kept_timesteps(",".join(map(str, counts)))
    assert len(kept) == sum(counts) and kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] < 1000


@pytest.mark.parametrize("respacing", ["0", "0,0", "ddim0", "1001", "5,501"])
def test_more_steps_than_a_section_has_are_refused(respacing: str) -> None:
    with pytest.raises(ConfigurationError, match="respacing"):
        kept_timesteps(respacing)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 200))
def test_a_respaced_chain_keeps_the_signal_share_of_its_timesteps(count: int) -> None:
    chain = schedule(str(count))
    np.testing.assert_allclose(chain.alphas_cumprod, train_alphas_cumprod()[chain.timesteps], rtol=1e-7)
    assert np.isfinite(chain.posterior_log_variance_clipped).all()


def test_the_last_timestep_holds_almost_no_signal() -> None:
    assert train_alphas_cumprod()[-1] == pytest.approx(2.43e-9, rel=0.01)
    chain = tables("100", CPU)
    growth = chain.posterior_mean_coef1[-1] * chain.sqrt_recipm1_alphas_cumprod[-1]
    assert growth.item() == pytest.approx(316, abs=1)


def test_the_bound_is_zero_for_the_true_noise_and_posterior_variance() -> None:
    steps = tables("1000", CPU).at(torch.tensor([1, 40, 999]))
    clean, noise = torch.randn(3, 4), torch.randn(3, 4)
    output = torch.cat([noise, torch.full((3, 4), -1.0)], -1)
    torch.testing.assert_close(
        bound_rows(steps, clean, diffuse(steps, clean, noise), output), torch.zeros(3), atol=1e-4, rtol=0
    )
    assert mse_rows(noise, noise).abs().max() == 0


def test_the_bound_teaches_the_variance_only() -> None:
    steps = tables("1000", CPU).at(torch.tensor([5, 500]))
    output = torch.randn(2, 8, requires_grad=True)
    bound_rows(steps, torch.randn(2, 4), torch.randn(2, 4), output).sum().backward()
    assert output.grad is not None
    assert output.grad[:, :4].abs().max() == 0 and output.grad[:, 4:].abs().min() > 0


def test_guidance_of_one_is_the_conditional_output() -> None:
    cond, uncond = torch.randn(5, 8), torch.randn(5, 8)
    torch.testing.assert_close(guided(cond, uncond, 1.0), cond)
    assert torch.equal(guided(cond, uncond, 0.0), torch.cat([uncond[:, :4], cond[:, 4:]], -1))


def test_the_true_noise_leads_back_to_the_clean_tokens() -> None:
    chain = tables("50", CPU)
    clean, noise = torch.randn(3, 4), torch.randn(3, 4)
    state = diffuse(chain.at(30), clean, noise)
    for index in reversed(range(31)):
        at = chain.at(index)
        epsilon = (state - at.sqrt_alphas_cumprod * clean) / at.sqrt_one_minus_alphas_cumprod
        output = torch.cat([epsilon, torch.zeros(3, 4)], -1)
        state, predicted = ancestral_step(at, state, output, torch.randn(3, 4) if index else None)
        torch.testing.assert_close(predicted, clean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(state, clean, atol=1e-3, rtol=1e-3)


def test_clipping_bounds_the_predicted_clean_tokens_and_the_mean_built_on_them() -> None:
    at = tables("10", CPU).at(9)
    output = torch.full((2, 8), 5.0)
    _, wild = ancestral_step(at, torch.zeros(2, 4), output, None)
    mean, clean = ancestral_step(at, torch.zeros(2, 4), output, None, clip_x0=1.5)
    assert wild.abs().max() > 1e4 and clean.abs().max() == 1.5
    assert mean.abs().max() <= 1.5 * at.posterior_mean_coef1.item() + 1e-6


def test_temperature_scales_the_added_noise() -> None:
    at = tables("10", CPU).at(4)
    state, output, noise = torch.randn(2, 4), torch.randn(2, 8), torch.randn(2, 4)
    mean, _ = ancestral_step(at, state, output, None)
    full, _ = ancestral_step(at, state, output, noise)
    half, _ = ancestral_step(at, state, output, noise, temperature=0.5)
    torch.testing.assert_close(half - mean, (full - mean) / 2)
    assert math.isfinite(full.sum().item())
