from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_model import ODD, VOCABULARY, odd_model
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harmon import sampling
from harmon.answering import AnswerConfig, answer
from harmon.model.diffusion import tables
from harmon.model.harmon import Harmon
from harmon.model.mar import Grid
from harmon.prompted import PromptedImage, bucket
from harmon.sampling import annealed, draw_tokens, generate, plan
from harmon.text import IMAGE_SLOT
from pipelines.errors import ConfigurationError

BUFFERS = ODD.mar.buffer_size


def prompts(lengths: list[int]) -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# -- the plan ------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(positions=st.integers(1, 300), steps=st.integers(1, 80), cfg=st.floats(0, 9))
def test_a_plan_draws_every_position_once(positions: int, steps: int, cfg: float) -> None:
    turns = plan(positions, steps, cfg, "linear")
    assert len(turns) == steps
    assert turns[0].masked == positions and turns[-1].masked_next == 0
    for turn, following in pairwise(turns):
        assert turn.masked_next == following.masked >= 1
        assert turn.masked_next < turn.masked or turn.masked == 1


def test_most_positions_are_drawn_late_and_linear_guidance_grows_with_them() -> None:
    turns = plan(256, 64, 3.0, "linear")
    assert [turn.masked - turn.masked_next for turn in turns[:3]] == [1, 1, 1]
    assert turns[-2].masked - turns[-2].masked_next == 6
    assert turns[0].cfg == pytest.approx(1 + 2 / 256) and turns[-1].cfg == pytest.approx(1 + 2 * 255 / 256)
    assert {turn.cfg for turn in plan(256, 64, 3.0, "constant")} == {3.0}


# -- generation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "steps"), [((4, 4), 3), ((3, 5), 5), ((2, 1), 6), ((6, 7), 1)])
@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_any_grid_and_number_of_steps_gives_finite_latents(grid: tuple[int, int], steps: int, cfg: float) -> None:
    ids, mask = prompts([6, 3] if cfg == 1 else [6, 3, 4, 4])
    latents = generate(odd_model(), ids, mask, grid, steps=steps, cfg=cfg, clip_x0=3.0)
    assert latents.shape == (2, 8, *grid) and latents.dtype == torch.float32
    assert latents.isfinite().all()
    assert latents.abs().max() <= 3.0 + 1e-5


def test_an_image_depends_on_its_own_generator_and_prompt_only() -> None:
    model = odd_model()
    ids, mask = prompts([6, 3, 5, 6, 4, 4, 4, 4])
    together = generate(model, ids, mask, (3, 4), steps=3, clip_x0=3.0, generator=generators(0, 1, 2, 3))
    for rows in ([0, 1], [2, 3]):
        pair = [*rows, *(row + 4 for row in rows)]
        apart = generate(model, ids[pair], mask[pair], (3, 4), steps=3, clip_x0=3.0, generator=generators(*rows))
        torch.testing.assert_close(apart, together[rows], atol=1e-4, rtol=0)
    again = generate(model, ids, mask, (3, 4), steps=3, clip_x0=3.0, generator=generators(0, 1, 2, 3))
    assert torch.equal(again, together)


def test_one_generator_repeats_a_whole_batch() -> None:
    ids, mask = prompts([6, 3])
    first, second, other = (
        generate(odd_model(), ids, mask, (2, 2), steps=2, cfg=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_equal_prompts_make_guidance_a_no_op() -> None:
    model = odd_model()
    ids, mask = prompts([5])
    plain = generate(model, ids, mask, (3, 3), steps=2, cfg=1.0, clip_x0=3.0, generator=generators(7))
    twice = generate(
        model,
        ids.repeat(2, 1),
        mask.repeat(2, 1),
        (3, 3),
        steps=2,
        cfg=4.0,
        clip_x0=3.0,
        generator=generators(7),
    )
    torch.testing.assert_close(plain, twice, atol=1e-3, rtol=1e-3)


def test_generation_switches_dropout_off_and_training_on_again() -> None:
    model = odd_model().train()
    ids, mask = prompts([4])
    images = [generate(model, ids, mask, (2, 2), steps=2, cfg=1.0, generator=generators(1)) for _ in range(2)]
    assert torch.equal(*images) and model.training


def test_each_part_is_left_in_the_mode_it_was_in() -> None:
    model = odd_model().train()
    model.mar.eval()
    before = {name: module.training for name, module in model.named_modules()}
    ids, mask = prompts([4])
    generate(model, ids, mask, (2, 2), steps=1, cfg=1.0, generator=generators(1))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2


@pytest.mark.parametrize("padded", [None, 8])
@pytest.mark.parametrize("lengths", [[6, 2, 5, 6], [6, 6, 6, 6]])
def test_the_cached_prompt_gives_what_the_training_path_gives(lengths: list[int], padded: int | None) -> None:
    model, grid = odd_model(), Grid(3, 4)
    ids, mask = prompts(lengths)
    tokens, visible = torch.randn(2, 12, 8), torch.tensor([[0, 3, 11], [2, 5, 6]])
    with torch.no_grad():
        prompted = PromptedImage(model, ids, mask, grid)
        for shown in (visible[:, :1], visible):  # twice: the first image must leave no trace in the cache
            x, image = model.visual_features(tokens, grid, shown)
            hidden = model.read_after_text(ids, mask, image.repeat(2, 1, 1))
            torch.testing.assert_close(
                prompted.encode(tokens, shown, padded=padded),
                model.inform(x.repeat(2, 1, 1), hidden),
                atol=1e-5,
                rtol=1e-4,
            )


def test_half_precision_weights_keep_a_float32_state() -> None:
    ids, mask = prompts([6, 3])
    latents = generate(odd_model().bfloat16(), ids, mask, (2, 3), steps=2, diffusion_steps=5, clip_x0=3.0)
    assert latents.dtype == torch.float32 and latents.isfinite().all()


@pytest.mark.parametrize(
    ("rows", "options"),
    [(3, {"cfg": 2.0}), (2, {"cfg": 1.0, "steps": 0}), (2, {"cfg": 1.0, "generator": []})],
)
def test_prompts_steps_and_generators_that_do_not_fit_are_refused(rows: int, options: dict) -> None:
    ids, mask = prompts([4] * rows)
    with pytest.raises(ConfigurationError):
        generate(odd_model(), ids, mask, (2, 2), **options)


def test_shapes_padded_to_buckets_change_nothing() -> None:
    model = odd_model()
    ids, mask = prompts([6, 3, 5, 4])
    options = {"steps": 4, "diffusion_steps": 5, "clip_x0": 3.0}
    exact, padded = (
        generate(model, ids, mask, (3, 7), generator=generators(1, 2), buckets=buckets, **options)
        for buckets in (False, True)
    )
    torch.testing.assert_close(padded, exact, atol=1e-3, rtol=1e-3)  # a chain of 5 steps multiplies rounding
    assert [bucket(count) for count in (0, 1, 8, 9, 16, 17, 256)] == [8, 8, 8, 16, 16, 32, 256]


# -- approximations ------------------------------------------------------------------------------------------


def test_annealed_diffusion_steps_fall_on_a_line_to_the_last() -> None:
    assert [annealed("50", 5, step, 4) for step in range(4)] == ["50", "35", "20", "5"]
    assert annealed("50", 5, 0, 1) == "50"
    assert annealed("10,5", None, 3, 4) == "10,5"


class CountedDraws:
    """One image's draws; keeps how many diffusion steps each AR step asks noise for."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.steps: list[int] = []

    def orders(self, images: int, positions: int) -> Tensor:
        return torch.randperm(positions, generator=self.generator).unsqueeze(0)

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        self.steps.append(steps)
        return torch.randn(steps, images, predicted, channels, generator=self.generator)


def drawn(**options: Any) -> tuple[Tensor, list[int]]:
    ids, mask = prompts([6, 3])
    draws = CountedDraws()
    options = {"steps": 4, "diffusion_steps": 6, "clip_x0": 3.0} | options
    return generate(odd_model(), ids, mask, (3, 4), draws=draws, **options), draws.steps


@pytest.mark.parametrize("rows", [1, 8, 20])
def test_how_many_modulations_are_one_product_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn()[0]
    monkeypatch.setattr(sampling, "_ROWS", rows)  # 2 to 12 rows of a diffusion step: one step at once, or some
    torch.testing.assert_close(drawn()[0], whole, atol=1e-4, rtol=1e-4)


def test_annealing_asks_fewer_and_fewer_diffusion_steps() -> None:
    assert drawn()[1] == [6, 6, 6, 6]
    assert drawn(diffusion_steps_last=3)[1] == [6, 5, 4, 3]
    with pytest.raises(ConfigurationError, match="annealed"):
        drawn(diffusion_steps="4,2", diffusion_steps_last=1)


class Waiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: reading a value, or a shape that hangs on values."""

    kinds = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name.removeprefix("aten::") not in self.kinds, func
        picked = args[1] if func._schema.name == "aten::index" else ()
        assert not any(one is not None and one.dtype == torch.bool for one in picked), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"cfg_every": 2}, {"refresh_every": 3}, {"sampler": "dpm++"}, {"buckets": True}]
)
def test_from_one_ar_step_to_the_next_nothing_reads_the_devices_values(options: dict[str, Any]) -> None:
    waiting, made = Waiting(), []

    class Watched(CountedDraws):
        def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
            if not made:
                waiting.__enter__()
            made.append(tables.cache_info().misses)
            return super().noise(steps, images, predicted, channels)

    ids, mask = prompts([6, 3])
    tables.cache_clear()
    how = {"steps": 4, "diffusion_steps": 7, "diffusion_steps_last": 2, "clip_x0": 3.0} | options
    try:
        generate(odd_model(), ids, mask, (3, 4), draws=Watched(), **how)
    finally:
        waiting.__exit__(None, None, None)
    assert made == [4] * 4 and tables.cache_info().misses == 4  # of four chains, all before the first noise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the host waits for a GPU only where there is one")
def test_from_one_ar_step_to_the_next_the_host_waits_for_no_gpu() -> None:
    ids, mask = (one.cuda() for one in prompts([6, 3]))
    how = {"steps": 4, "diffusion_steps": 7, "diffusion_steps_last": 2, "clip_x0": 3.0}

    def watch(done: int, _: Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error" if done < 4 else "default")

    try:
        generate(odd_model().cuda(), ids, mask, (3, 4), draws=CountedDraws(), on_step=watch, **how)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_guidance_outside_its_interval_is_none_and_within_the_whole_it_is_everywhere() -> None:
    assert torch.equal(drawn(cfg_interval=(0.0, 1.0))[0], drawn()[0])
    ids, mask = prompts([6, 3])
    options = {"steps": 4, "diffusion_steps": 6, "clip_x0": 3.0}
    plain = generate(odd_model(), ids[:1], mask[:1], (3, 4), cfg=1.0, draws=CountedDraws(), **options)
    torch.testing.assert_close(drawn(cfg_interval=(0.0, 0.0))[0], plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(drawn(cfg_interval=(0.5, 1.0))[0], plain, atol=1e-2)


def test_a_kept_unconditional_half_is_exact_while_it_is_fresh_and_close_afterwards() -> None:
    exact = drawn()[0]
    together = drawn(cfg_every=4)[0]
    order = CountedDraws().orders(1, 12)[0]
    first = plan(12, 4, 3.0, "constant")[0]
    early = order[first.masked_next : first.masked]
    torch.testing.assert_close(together.flatten(2)[..., early], exact.flatten(2)[..., early], atol=1e-4, rtol=1e-4)
    assert 0 < (together - exact).abs().mean() < 0.5 * exact.abs().mean()


class PerfectHead:
    """Stands for the diffusion head: epsilon of data N(1.5, 0.5^2), which is known in closed form."""

    mean, deviation = 1.5, 0.5

    def __init__(self, respacing: str) -> None:
        self.net, self.chain = self, tables(respacing, torch.device("cpu"))

    def cond_embed(self, z: Tensor) -> Tensor:
        return z

    def time_embed(self, timesteps: Tensor) -> Tensor:
        return torch.arange(len(timesteps)).float().unsqueeze(-1)  # hands on the index in the chain

    def modulations(self, condition: Tensor) -> list[Tensor]:
        return [condition]

    def predict(self, noisy: Tensor, modulations: list[Tensor]) -> Tensor:
        here = self.chain.at(int(modulations[0].flatten()[0]))
        alpha, sigma = here.sqrt_alphas_cumprod, here.sqrt_one_minus_alphas_cumprod
        gain = alpha * self.deviation**2 / (alpha**2 * self.deviation**2 + sigma**2)
        clean = self.mean + gain * (noisy - alpha * self.mean)
        epsilon = (noisy - alpha * clean) / sigma
        return torch.cat([epsilon, torch.zeros_like(epsilon)], -1).unsqueeze(0)


@pytest.mark.parametrize(("steps", "tolerance"), [(10, 0.04), (20, 0.03), (50, 0.02)])
def test_the_solver_draws_the_distribution_that_a_perfect_head_describes(steps: int, tolerance: float) -> None:
    noise = torch.randn(steps, 1, 20000, 1, generator=torch.Generator().manual_seed(0))
    head: Any = PerfectHead(str(steps))
    tokens = draw_tokens(head, torch.zeros(1, 20000, 1), noise, 1.0, str(steps), sampler="dpm++")
    assert tokens.mean().item() == pytest.approx(PerfectHead.mean, abs=0.02)
    assert tokens.std().item() == pytest.approx(PerfectHead.deviation, abs=tolerance)


def test_the_solver_draws_with_the_head_within_the_bound_on_clean_tokens() -> None:
    latents, steps = drawn(sampler="dpm++")
    assert steps == [6, 6, 6, 6] and latents.abs().max() <= 3.0
    assert not torch.allclose(latents, drawn()[0], atol=1e-2)


def test_every_step_shows_what_is_drawn_so_far() -> None:
    ids, mask = prompts([6, 3])
    shown: list[tuple[int, Tensor]] = []
    final = generate(
        odd_model(), ids, mask, (2, 2), steps=6, diffusion_steps=3, clip_x0=3.0, generator=generators(1),
        on_step=lambda done, latents: shown.append((done, latents.clone())),
    )  # fmt: skip
    assert [done for done, _ in shown] == [1, 2, 3, 4, 5, 6]
    counts = [int((latents != 0).all(1).sum()) for _, latents in shown]
    assert counts == sorted(counts) and counts[-1] == 4 and counts[0] < 4
    assert torch.equal(shown[-1][1], final)


# -- answers -------------------------------------------------------------------------------------------------


def uncached_answer(model: Harmon, latents: Tensor | None, ids: Tensor, count: int) -> list[int]:
    """Greedy decoding of one unpadded prompt, the whole sequence anew for each token."""
    tokens: list[int] = []
    for _ in range(count):
        image = None if latents is None else model.visual_features(*model.to_tokens(latents))[1]
        embeddings = model.prompt_embeddings(torch.cat([ids, torch.tensor([tokens], dtype=torch.long)], 1), image)
        tokens.append(int(model.llm(inputs_embeds=embeddings).logits[0, -1].argmax()))
    return tokens


def image_prompt(before: int, after: int, seed: int) -> Tensor:
    text = torch.randint(VOCABULARY, (1, before + after), generator=torch.Generator().manual_seed(seed))
    return torch.cat([text[:, :before], torch.full((1, 4 + BUFFERS), IMAGE_SLOT), text[:, before:]], 1)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batches_answer_as_each_prompt_alone(side: str) -> None:
    model = odd_model(4)
    rows = [image_prompt(2, 6, 1), image_prompt(1, 3, 2)]
    latents = torch.randn(2, 8, 2, 2, generator=torch.Generator().manual_seed(5))
    width = max(row.shape[1] for row in rows)
    padding = [(width - row.shape[1], 0) if side == "left" else (0, width - row.shape[1]) for row in rows]
    ids = torch.cat([F.pad(row, pad, value=7) for row, pad in zip(rows, padding)])
    mask = torch.cat([F.pad(torch.ones_like(row), pad) for row, pad in zip(rows, padding)])
    expected = [uncached_answer(model, latents[i : i + 1], row, 6) for i, row in enumerate(rows)]
    assert answer(model, latents, ids, mask, AnswerConfig(max_new_tokens=6), eos_ids=()) == expected


@torch.no_grad()
def test_whole_prompts_are_answered_as_alone_and_each_token_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = odd_model(4)
    ids = torch.cat([image_prompt(2, 6, 1), image_prompt(2, 6, 2)])
    latents = torch.randn(2, 8, 2, 2, generator=torch.Generator().manual_seed(5))
    expected = [uncached_answer(model, latents[i : i + 1], ids[i : i + 1], 6) for i in range(2)]
    masks, attention = [], F.scaled_dot_product_attention

    def watched(queries: Tensor, *rest: Any, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if queries.shape[2] == 1:
            masks.append(attn_mask)
        return attention(queries, *rest, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert answer(model, latents, ids, None, AnswerConfig(max_new_tokens=6), eos_ids=()) == expected
    layers = ODD.llm.num_hidden_layers
    assert masks[1:] == [None] * 5 * layers  # the first is the prompt's last layer, at its last position


@torch.no_grad()
def test_an_answer_ends_before_its_first_end_token() -> None:
    model = odd_model(4)
    ids = torch.randint(VOCABULARY, (1, 5), generator=torch.Generator().manual_seed(9))
    whole = uncached_answer(model, None, ids, 8)
    end = whole[3]
    [short] = answer(model, None, ids, config=AnswerConfig(max_new_tokens=8), eos_ids={end})
    assert short == whole[: whole.index(end)]
    assert answer(model, None, ids, config=AnswerConfig(max_new_tokens=0)) == [[]]
