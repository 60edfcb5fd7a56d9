"""The model that training and generation are timed on, and how: alternating, medians, CPU-seconds.

A middle size of published widths at a depth that a CPU turns round in seconds: Qwen2.5-0.5B's width with 6 layers and
8,192 words, MAR-B's width with 4 + 4 blocks, a diffusion head of 3 x 1024, KL-16, 256 px.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.config import HarmonConfig, HeadConfig, MarConfig, QwenConfig
from harmon.model.harmon import Harmon

MIDDLE = HarmonConfig(
    llm=QwenConfig(
        hidden_size=896, num_hidden_layers=6, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, vocab_size=8192,
    ),
    mar=MarConfig(
        encoder_width=768, encoder_depth=4, encoder_heads=12, decoder_width=768, decoder_depth=4, decoder_heads=12,
        attention_dropout=0.0, dropout=0.0,  # so that both paths can be compared number by number
    ),
    head=HeadConfig(width=1024, depth=3),
)  # fmt: skip
QUICK = HarmonConfig(
    llm=QwenConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, vocab_size=128,
    ),
    mar=MarConfig(
        encoder_width=48, encoder_depth=2, encoder_heads=4, decoder_width=48, decoder_depth=2, decoder_heads=4,
        buffer_size=8, native_grid=4, attention_dropout=0.0, dropout=0.0,
    ),
    head=HeadConfig(width=64, depth=2),
)  # fmt: skip
QUICK_KL = KlConfig(base_channels=32, res_blocks=1)


class PlainAutoencoder(KlAutoencoder):
    """The plain path's: images channel by channel, as PyTorch lays them out by itself."""

    layout = torch.contiguous_format


def make_model(config: HarmonConfig, kl: KlConfig) -> tuple[Harmon, KlAutoencoder, PlainAutoencoder]:
    """Random weights, the same in both autoencoders; those that start at zero are drawn too, so that every product
    counts.
    """
    torch.manual_seed(0)
    model = Harmon(config)
    autoencoder, plain = (kind(kl).eval().requires_grad_(False) for kind in (KlAutoencoder, PlainAutoencoder))
    plain.load_state_dict(autoencoder.state_dict())
    for parameter in model.mar.diffloss.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.train(), autoencoder, plain


def medians(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """CPU-seconds of each case: the median of `repeats` turns in which all cases run one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(size: int = 1024, turns: int = 12) -> float:
    """GFLOP per CPU-second of a square float32 matrix product: the best of `turns`."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    for _ in range(turns):
        start = time.process_time()
        for _ in range(4):
            left @ right
        best = max(best, 4 * 2 * size**3 / 1e9 / (time.process_time() - start))
    return best
