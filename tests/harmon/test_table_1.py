"""Paper Table 1, parameter by parameter: what moves in each stage, and at what rate."""

import pytest
import torch
from miniature import tiny_model

from harmon.model.harmon import Harmon
from harmon.training.optimiser import make_optimiser, trained_parameters
from harmon.training.stage import load_stage

GROUPS = {  # our reading of "MAR encoder", "MAR decoder" and "LLM": names of the released checkpoints
    "encoder": (
        "mar.z_proj", "mar.fake_latent", "mar.encoder_pos_embed_learned", "mar.encoder_blocks", "mar.encoder_norm",
        "proj_in",
    ),
    "decoder": (
        "proj_out", "mar.decoder_embed", "mar.mask_token", "mar.decoder_pos_embed_learned", "mar.decoder_blocks",
        "mar.decoder_norm", "mar.diffusion_pos_embed_learned", "mar.diffloss",
    ),
    "llm": ("llm",),
}  # fmt: skip
UNREAD = "mar.class_emb"  # carried for the released checkpoints; no loss reads it
RATES = {
    "stage1": {"encoder": 1e-5, "decoder": 1e-4},
    "stage2": {"encoder": 1e-5, "decoder": 1e-4, "llm": 1e-5},
    "stage3": {"encoder": 2e-6, "decoder": 2e-5, "llm": 2e-6},
    "finetune-o": {"decoder": 1e-5},  # README of the release: the MAR decoder alone
    "stage4-reca": {"encoder": 1e-5, "decoder": 1e-5, "llm": 1e-5},
}


def group_of(name: str) -> str:
    found = [group for group, starts in GROUPS.items() if name.startswith(starts)]
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("name", RATES)
def test_every_parameter_moves_at_its_groups_rate_or_not_at_all(name: str):
    stage = load_stage(name)
    with torch.device("meta"):
        config = tiny_model()
        model = Harmon(config.model_copy(update={"mar": config.mar.model_copy(update={"class_count": 10})}))
    trained = trained_parameters(model, stage)
    peaks = {
        id(parameter): group["peak"]
        for group in make_optimiser(stage, trained).param_groups
        for parameter in group["params"]
    }
    moving = {name: peaks[id(value)] for name, value in model.named_parameters() if id(value) in peaks}
    names = [name for name, _ in model.named_parameters() if not name.startswith(UNREAD)]
    assert moving == {one: RATES[name][group_of(one)] for one in names if group_of(one) in RATES[name]}
    assert [one for one, value in model.named_parameters() if value.requires_grad] == list(moving)
    assert all(any(one.startswith(start) for one in names) for starts in GROUPS.values() for start in starts)
