"""Latents of pictures whose every draw comes from the picture's own seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harmon.model.harmon import Harmon
from harmon.sampling import generate
from harmon.seeds import stream


def draw_latents(
    model: Harmon,
    input_ids: Tensor,
    attention_mask: Tensor,
    grid: tuple[int, int],
    seeds: Sequence[int],
    sampling: Mapping[str, Any],
    on_step: Callable[[int, Tensor], None] | None = None,
    buckets: bool = False,
) -> Tensor:
    """Latents [B, C, h, w] float32; prompts and `grid` as `harmon.sampling.generate` takes them.

    `sampling` holds fields of harmon.sampling_config.SamplingConfig; the paper's hold for those left out.
    """
    options = dict(sampling)
    steps = options.pop("ar_steps", 64)
    generators = [torch.Generator().manual_seed(stream(seed, "picture") % 2**63) for seed in seeds]
    return generate(
        model,
        input_ids,
        attention_mask,
        grid,
        steps=steps,
        generator=generators,
        on_step=on_step,
        buckets=buckets,
        **options,
    )
