"""A Harmon of a few thousand parameters whose every size differs from its neighbour's."""

import torch

from harmon.model.config import HarmonConfig, HeadConfig, MarConfig, QwenConfig
from harmon.model.harmon import Harmon

torch.set_num_threads(1)

VOCABULARY = 97
ODD = HarmonConfig(
    llm=QwenConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=80,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
    ),
    mar=MarConfig(
        encoder_width=24,
        encoder_depth=1,
        encoder_heads=3,
        decoder_width=40,
        decoder_depth=2,
        decoder_heads=5,
        native_grid=4,
        latent_channels=8,
        buffer_size=5,
    ),
    head=HeadConfig(width=32, depth=2, batch_mul=3, sampling_steps="4,3,2"),
)


def odd_model(seed: int = 0, config: HarmonConfig = ODD) -> Harmon:
    """In evaluation mode, with no parameter left at zero: a fresh head's outputs would be."""
    torch.manual_seed(seed)
    model = Harmon(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
