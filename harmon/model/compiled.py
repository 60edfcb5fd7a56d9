"""torch.compile over the regions that most of the work lies in."""

from __future__ import annotations

import torch

from harmon.model.harmon import Harmon


def compile_regions(model: Harmon, graphs: bool = True) -> None:
    """Compile, in place and at their first use: MAR's blocks, the LLM's MLPs, and the diffusion head.

    Names of parameters stay. On a GPU the head, which generation calls hundreds of times for each AR step, replays
    CUDA graphs (`reduce-overhead`) where `graphs` asks for it, of which there is one for each shape: generate with
    `buckets`. All else is compiled for any size.
    """
    net = model.mar.diffloss.net
    mode = "reduce-overhead" if graphs and model.device.type == "cuda" else None
    for block in (*model.mar.encoder_blocks, *model.mar.decoder_blocks):
        block.compile(dynamic=True)
    for layer in model.llm.model.layers:
        layer.mlp.compile(dynamic=True)
    net.predict = torch.compile(net.predict, dynamic=mode is None, mode=mode)  # type: ignore[method-assign]
