"""Features that are kept between AR steps: exact where nothing has changed, and an approximation elsewhere."""

from typing import Any

import pytest
import torch
from odd_model import ODD, VOCABULARY, odd_model
from torch import Tensor

from harmon.model.config import HarmonConfig
from harmon.model.kept import Kept
from harmon.model.language import read_causally
from harmon.model.mar import Grid, take
from harmon.prompted import PromptedImage
from harmon.sampling import generate, plan
from harmon.token_cache import TokenCache

GRID = Grid(4, 5)
BUFFERS = ODD.mar.buffer_size
SHALLOW = ODD.model_copy(
    update={
        "llm": ODD.llm.model_copy(update={"num_hidden_layers": 1}),
        "mar": ODD.mar.model_copy(update={"encoder_depth": 1, "decoder_depth": 1}),
    }
)  # of a single layer, keys and values depend on nothing but their own token: kept ones are not old


def prompts(*lengths: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def drawn(rows: list[int], **options: Any) -> Tensor:
    """Latents of four prompted images, those in `rows`."""
    ids, mask = prompts(6, 3, 5, 6, 4, 4, 4, 4)
    both = [*rows, *(row + 4 for row in rows)]
    generators = [torch.Generator().manual_seed(row) for row in rows]
    options = {"steps": 6, "diffusion_steps": 8, "clip_x0": 3.0} | options
    return generate(odd_model(), ids[both], mask[both], tuple(GRID), generator=generators, **options)


def places(*of_each: list[int]) -> Tensor:
    return torch.tensor(of_each)


# -- what is kept is exact where nothing has changed ---------------------------------------------------------


@pytest.mark.parametrize("lengths", [(6, 2, 5, 6), (6, 6, 6, 6)])
@torch.no_grad()
def test_a_cache_that_is_refreshed_in_every_step_gives_the_exact_outputs(lengths: tuple[int, ...]) -> None:
    model, images = odd_model(), 2
    prompted = PromptedImage(model, *prompts(*lengths), GRID)
    cache = TokenCache(prompted, images, every=1)
    order = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(row)) for row in range(images)])
    for turn in plan(20, 4, 3.0, "constant"):
        tokens = torch.randn(images, 20, 8)
        visible, now = (
            part.sort(1).values for part in (order[:, turn.masked :], order[:, turn.masked_next : turn.masked])
        )
        exact = model.mar.decode(prompted.encode(tokens, visible), GRID, visible.repeat(2, 1), now.repeat(2, 1))
        torch.testing.assert_close(cache.decode(tokens, visible, now, 2), exact, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_encoder_reads_new_tokens_among_kept_ones() -> None:
    mar, tokens = odd_model(config=SHALLOW).mar, torch.randn(2, 20, 8)
    kept = Kept(1, 2, ODD.mar.encoder_heads, BUFFERS + 20, 8, tokens)
    early, late = places([3, 9], [0, 19]), places([1, 4, 11], [2, 3, 7])
    mar.encode(tokens, GRID, early, pasts=kept.at(torch.arange(BUFFERS + 2).expand(2, -1), BUFFERS + 2))
    read = torch.cat([torch.arange(BUFFERS), torch.arange(BUFFERS + 2, BUFFERS + 5)]).expand(2, -1)
    among = mar.encode(tokens, GRID, late, pasts=kept.at(read, BUFFERS + 5))
    torch.testing.assert_close(among, take(mar.encode(tokens, GRID, torch.cat([early, late], 1)), read))


@torch.no_grad()
def test_the_decoder_computes_some_places_among_kept_ones() -> None:
    mar = odd_model(config=SHALLOW).mar
    visible, now = places([2, 5, 8], [0, 1, 17]), places([3, 19], [2, 9])
    x = torch.randn(2, BUFFERS + 3, ODD.mar.encoder_width)
    whole = torch.arange(BUFFERS + 20).repeat(2, 1)
    kept = Kept(1, 2, ODD.mar.decoder_heads, BUFFERS + 20, 8, x)
    mar.decode(x, GRID, visible, now, pasts=kept.at(whole, BUFFERS + 20))
    newest = torch.cat([x[:, :BUFFERS], x[:, -1:]], 1)
    some = torch.cat([whole[:, :BUFFERS], BUFFERS + torch.cat([visible[:, -1:], now], 1).sort(1).values], 1)
    again = mar.decode(newest, GRID, visible[:, -1:], now, pasts=kept.at(some, BUFFERS + 20))
    torch.testing.assert_close(again, mar.decode(x, GRID, visible, now), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "old", "new"),
    [(SHALLOW, [3, 8, 12], [0, 9, 10, 15]), (ODD, [3, 8, 9], [10, 14])],
    ids=["one layer, tokens inserted", "tokens behind all others"],
)
@torch.no_grad()
def test_the_language_model_reads_new_tokens_among_kept_ones_that_have_moved(
    config: HarmonConfig, old: list[int], new: list[int]
) -> None:
    """A kept token's keys must be turned to its present position, and must see only what is before it."""
    model = odd_model(config=config)
    llm, (ids, mask) = model.llm.model, prompts(6, 4)
    prompted = PromptedImage(model, ids, mask, GRID)
    cache = TokenCache(prompted, 2, every=9)
    slots = torch.randn(2, 20 + BUFFERS, config.llm.hidden_size)
    buffers = list(range(20, 20 + BUFFERS))

    def read(known: list[int], computed: list[int]) -> Tensor:
        cache.read_BM = torch.tensor([known, known])
        return cache._read(slots[:, computed + buffers], 1)

    read(old, old)
    among = read(old + new, new)
    everything = sorted(old + new) + buffers
    places = torch.arange(len(everything)) + mask.sum(1, keepdim=True)
    x = torch.cat([llm.embed_tokens(ids), slots[:, everything]], 1)
    seen = torch.cat([mask, torch.ones(2, len(everything), dtype=torch.bool)], 1)
    positions = torch.cat([torch.arange(6).expand(2, -1), places], 1)
    whole = read_causally(llm, x, positions=positions, seen=seen)
    wanted = [6 + everything.index(place) for place in new + buffers]
    torch.testing.assert_close(among, whole[:, wanted], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_half_of_guidance_that_was_left_out_makes_everything_be_computed() -> None:
    model = odd_model()
    prompted = PromptedImage(model, *prompts(6, 4), GRID)
    cache, tokens = TokenCache(prompted, 1, every=9), torch.randn(1, 20, 8)
    cache.decode(tokens, places([]).long(), places([4]), 2)
    cache.decode(tokens, places([4]), places([7]), 1)
    both = cache.decode(tokens, places([4, 7]), places([9]), 2)
    shown = places([4, 7])
    exact = model.mar.decode(prompted.encode(tokens, shown), GRID, shown.repeat(2, 1), places([9], [9]))
    torch.testing.assert_close(both, exact, atol=1e-6, rtol=1e-6)


# -- whole pictures ------------------------------------------------------------------------------------------


def test_reading_all_tokens_in_every_step_is_the_exact_path() -> None:
    assert torch.equal(drawn([0, 1], refresh_every=1), drawn([0, 1]))


@pytest.mark.parametrize("options", [{}, {"cfg": 1.0}, {"cfg_every": 2}, {"cfg_interval": (0.3, 0.8)}])
def test_kept_features_change_a_picture_a_little_and_always_equally(options: dict[str, Any]) -> None:
    if options.get("cfg") == 1.0:
        ids, mask = prompts(6, 3)
        exact, kept, again = (
            generate(
                odd_model(), ids, mask, tuple(GRID), steps=6, diffusion_steps=8, clip_x0=3.0, refresh_every=every,
                generator=[torch.Generator().manual_seed(row) for row in range(2)], **options,
            )
            for every in (1, 3, 3)
        )  # fmt: skip
    else:
        exact, kept, again = (drawn([0, 1], refresh_every=every, **options) for every in (1, 3, 3))
    assert torch.equal(kept, again)
    assert 0 < (kept - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_a_picture_of_kept_features_depends_on_its_own_prompt_and_generator_only() -> None:
    together = drawn([0, 1, 2, 3], refresh_every=3)
    for rows in ([0, 1], [2, 3], [3]):
        torch.testing.assert_close(drawn(rows, refresh_every=3), together[rows], atol=1e-4, rtol=0)


def test_half_precision_weights_keep_features_too() -> None:
    ids, mask = prompts(6, 3)
    latents = generate(
        odd_model().bfloat16(), ids, mask, tuple(GRID), steps=5, diffusion_steps=5, clip_x0=3.0, refresh_every=2
    )
    assert latents.dtype == torch.float32 and latents.isfinite().all()
