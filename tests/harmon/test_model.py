import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_model import ODD, VOCABULARY, odd_model
from torch import Tensor, nn

from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon, has_weight_decay, part_of
from harmon.model.mar import Grid
from harmon.text import IGNORED, IMAGE_SLOT
from pipelines.errors import ConfigurationError, HarmonError

BUFFERS = ODD.mar.buffer_size


def millions(*modules: nn.Module | nn.Parameter) -> float:
    parameters = [list(part.parameters()) if isinstance(part, nn.Module) else [part] for part in modules]
    return round(sum(parameter.numel() for group in parameters for parameter in group) / 1e6, 2)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("harmon-0.5b", (85.06, 85.06, 0.59, 35.75, 0.77, 0.69, 207.92, 357.90, 136.13, 1.49, 1.49, 704.94)),
        (
            "harmon-1.5b",
            (393.55, 393.55, 1.64, 151.21, 1.28, 1.15, 942.40, 1310.34, 233.37, 4.33, 4.33, 2494.77),
        ),
    ],
)
def test_presets_have_the_published_parameter_counts(name: str, counts: tuple[float, ...]) -> None:
    with torch.device("meta"):
        model = Harmon(HarmonConfig.preset(name))
    mar = model.mar
    tables = (mar.encoder_pos_embed_learned, mar.decoder_pos_embed_learned, mar.diffusion_pos_embed_learned)
    assert counts == (
        millions(mar.encoder_blocks, mar.encoder_norm),
        millions(mar.decoder_blocks, mar.decoder_norm),
        millions(mar.decoder_embed),
        millions(mar.diffloss),
        millions(mar.class_emb),
        millions(mar.fake_latent, mar.mask_token, *tables),
        millions(mar),
        millions(model.llm.model.layers, model.llm.model.norm),
        millions(model.llm.model.embed_tokens),
        millions(model.proj_in),
        millions(model.proj_out),
        millions(model),
    )


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"harmon-0\.5b"):
        HarmonConfig.preset("harmon-7b")


def test_every_parameter_belongs_to_one_of_the_three_parts() -> None:
    parts: dict[str, set[str]] = {"encoder": set(), "decoder": set(), "llm": set()}
    for name, _ in odd_model().named_parameters():
        parts[part_of(name)].add(".".join(name.split(".")[:2]))
    assert {
        "mar.z_proj",
        "mar.z_proj_ln",
        "mar.fake_latent",
        "mar.encoder_pos_embed_learned",
        "proj_in.0",
    } <= parts["encoder"]
    assert {"mar.decoder_embed", "mar.mask_token", "mar.diffloss", "proj_out.2"} <= parts["decoder"]
    assert parts["llm"] == {"llm.model"}
    assert not parts["encoder"] & parts["decoder"]


def test_biases_norms_and_the_whole_head_are_not_decayed() -> None:
    decayed = {name for name, parameter in odd_model().named_parameters() if has_weight_decay(name, parameter)}
    assert {"mar.fake_latent", "mar.mask_token", "llm.model.embed_tokens.weight"} <= decayed
    assert not {name for name in decayed if "diffloss" in name or "norm" in name or name.endswith("bias")}


# -- encoder and decoder -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), data=st.data())
def test_any_grid_and_any_number_of_masked_positions_decode(height: int, width: int, data: st.DataObject) -> None:
    model, grid = odd_model(), Grid(height, width)
    masked = data.draw(st.integers(1, grid.positions))
    order = torch.randperm(grid.positions).unsqueeze(0)
    visible = order[:, masked:].sort(1).values
    tokens, found = model.to_tokens(torch.randn(1, 8, height, width))
    assert found == grid
    x = model.mar.encode(tokens, grid, visible)
    assert x.shape == (1, BUFFERS + grid.positions - masked, ODD.mar.encoder_width)
    every = model.mar.decode(x, grid, visible)
    some = model.mar.decode(x, grid, visible, order[:, :masked])
    torch.testing.assert_close(some[0], every[0, order[0, :masked]])


def test_tokens_go_back_to_latents_at_any_patch_size() -> None:
    model = odd_model(config=ODD.model_copy(update={"mar": ODD.mar.model_copy(update={"patch_size": 2})}))
    latents = torch.randn(2, 8, 4, 6)
    tokens, grid = model.to_tokens(latents)
    assert tokens.shape == (2, 6, 32) and grid == (2, 3)
    assert torch.equal(model.to_latents(tokens, grid), latents)


def test_masked_positions_do_not_influence_the_encoding() -> None:
    model, grid, visible = odd_model(), Grid(3, 3), torch.tensor([[1, 4, 8]])
    tokens = torch.randn(1, 9, 8)
    changed = tokens.clone()
    changed[:, [0, 2, 3, 5, 6, 7]] = 9.0
    assert torch.equal(model.mar.encode(tokens, grid, visible), model.mar.encode(changed, grid, visible))


# -- losses --------------------------------------------------------------------------------------------------


def text_to_image_batch() -> dict[str, Tensor | int]:
    rows, grid, generator = 3, Grid(3, 5), torch.Generator().manual_seed(0)
    positions, repeats = grid.positions, ODD.head.batch_mul
    lengths = torch.tensor([6, 2, 4])
    return {
        "latents": torch.randn(rows, 8, *grid, generator=generator),
        "text_ids": torch.randint(VOCABULARY, (rows, 6), generator=generator),
        "text_mask": torch.arange(6) < lengths.unsqueeze(1),
        "order": torch.stack([torch.randperm(positions, generator=generator) for _ in range(rows)]),
        "masked": 11,
        "timesteps": torch.randint(1000, (repeats, rows, positions), generator=generator),
        "noise": torch.randn(repeats, rows, positions, 8, generator=generator),
    }


def test_gathering_masked_rows_first_gives_the_loss_over_all_rows_times_the_mask() -> None:
    model, batch = odd_model(), text_to_image_batch()
    loss = model.text_to_image_loss(**batch)
    tokens, grid = model.to_tokens(batch["latents"])
    mask = torch.zeros(3, grid.positions).scatter(1, batch["order"][:, :11], 1.0)
    visible = (mask == 0).nonzero()[:, 1].view(3, -1)
    x, image = model.visual_features(tokens, grid, visible)
    hidden = model.read_after_text(batch["text_ids"], batch["text_mask"], image)
    z = model.mar.decode(model.inform(x, hidden), grid, visible)
    rows = model.mar.diffloss.loss_rows(z, tokens, batch["timesteps"], batch["noise"])
    torch.testing.assert_close(loss.total / loss.count, (rows * mask).sum() / (mask.sum() * len(rows)))
    assert loss.count == 33


def test_text_padding_does_not_change_the_loss() -> None:
    model, batch = odd_model(), text_to_image_batch()
    padded = dict(batch)
    padded["text_ids"] = torch.nn.functional.pad(batch["text_ids"], (0, 7), value=3)
    padded["text_mask"] = torch.nn.functional.pad(batch["text_mask"], (0, 7))
    torch.testing.assert_close(
        model.text_to_image_loss(**padded).per_sample, model.text_to_image_loss(**batch).per_sample
    )


def test_a_row_of_weight_zero_leaves_loss_count_and_gradients_of_the_others() -> None:
    model, batch = odd_model(), text_to_image_batch()
    weighted = model.text_to_image_loss(**batch, weight=torch.tensor([1.0, 0.0, 1.0]))
    kept = {
        key: value if isinstance(value, int) else value[:, [0, 2]] if key in ("timesteps", "noise") else value[[0, 2]]
        for key, value in batch.items()
    }
    alone = model.text_to_image_loss(**kept)
    torch.testing.assert_close(weighted.total, alone.total)
    assert weighted.count == alone.count == 22
    torch.testing.assert_close(weighted.per_sample[[0, 2]], alone.per_sample)
    gradients = [torch.autograd.grad(loss.total, model.mar.z_proj.weight)[0] for loss in (weighted, alone)]
    torch.testing.assert_close(*gradients)


def test_the_class_table_takes_no_part() -> None:
    model = odd_model()
    model.text_to_image_loss(**text_to_image_batch()).total.backward()
    assert model.mar.class_emb.weight.grad is None
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert missing == {"mar.class_emb.weight"}


def question_batch(model: Harmon) -> dict[str, Tensor]:
    slots = torch.full((2, 9 + BUFFERS), IMAGE_SLOT)
    text = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1))
    input_ids = torch.cat([text[:, :2], slots, text[:, 2:]], 1)
    labels = torch.full_like(input_ids, IGNORED)
    labels[0, -4:] = text[0, -4:]
    labels[1, -5:-2] = text[1, -5:-2]
    latents = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(2))
    return {"latents": latents, "input_ids": input_ids, "labels": labels}


def test_the_answer_loss_is_transformers_own_on_the_same_embeddings() -> None:
    model = odd_model()
    batch = question_batch(model)
    loss = model.image_to_text_loss(**batch)
    _, image = model.visual_features(*model.to_tokens(batch["latents"]))
    mask = torch.ones_like(batch["input_ids"])
    mask[1, -2:] = 0  # right padding, which our loss is not told of
    expected = model.llm(
        inputs_embeds=model.prompt_embeddings(batch["input_ids"], image),
        attention_mask=mask,
        labels=batch["labels"],
    ).loss
    torch.testing.assert_close(loss.total / loss.count, expected)
    assert loss.count == 7
    torch.testing.assert_close(loss.per_sample.sum(), loss.total)


def test_understanding_sends_a_tenth_of_its_gradient_into_the_encoder() -> None:
    model = odd_model()
    batch = question_batch(model)
    parameters = [model.mar.z_proj.weight, model.proj_in[0].weight, model.llm.model.norm.weight]
    scaled = torch.autograd.grad(model.image_to_text_loss(**batch).total, parameters)
    plain = torch.autograd.grad(model.image_to_text_loss(**batch, grad_scale=None).total, parameters)
    for factor, tenth, whole in zip((0.1, 0.1, 1.0), scaled, plain):
        torch.testing.assert_close(tenth, whole * factor)


def test_text_alone_reaches_the_language_model_only() -> None:
    model = odd_model()
    ids = torch.randint(VOCABULARY, (2, 6))
    loss = model.image_to_text_loss(None, ids, ids)
    loss.total.backward()
    assert loss.count == 10
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"llm"}


def test_a_prompt_with_the_wrong_number_of_image_slots_is_refused() -> None:
    model = odd_model()
    batch = question_batch(model)
    with pytest.raises(HarmonError, match="14 image slots"):
        model.image_to_text_loss(**{**batch, "input_ids": batch["input_ids"].masked_fill(batch["labels"] >= 0, -200)})
    with pytest.raises(HarmonError, match="0 image slots"):
        model.image_to_text_loss(**{**batch, "latents": None})


# -- released weights ----------------------------------------------------------------------------------------


def test_released_weights_load_with_or_without_the_tied_head_and_in_any_float_type() -> None:
    source = odd_model(1)
    state = {key: value.to(torch.bfloat16) for key, value in source.state_dict().items()}
    assert {"llm.lm_head.weight", "mar.class_emb.weight"} <= state.keys()
    for weights in (state, {key: value for key, value in state.items() if key != "llm.lm_head.weight"}):
        target = odd_model(2)
        target.load_released(weights)
        assert target.llm.lm_head.weight is target.llm.model.embed_tokens.weight
        assert all(torch.equal(target.state_dict()[key], state[key].float()) for key in state)


def test_a_renamed_key_a_wrong_shape_and_an_untied_head_are_refused_by_name() -> None:
    state = odd_model().state_dict()
    renamed = {key.replace("mar.z_proj_ln", "mar.z_norm"): value for key, value in state.items()}
    with pytest.raises(HarmonError, match=r"mar\.z_proj_ln\.weight is missing.*mar\.z_norm\.weight is unexpected"):
        odd_model().load_released(renamed)
    with pytest.raises(HarmonError, match=r"proj_in\.0\.bias has shape \(1,\)"):
        odd_model().load_released({**state, "proj_in.0.bias": torch.zeros(1)})
    with pytest.raises(HarmonError, match="lm_head"):
        odd_model().load_released({**state, "llm.lm_head.weight": torch.zeros_like(state["llm.lm_head.weight"])})
