"""Pictures from prompts: what `harmon generate` and the evaluation do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from harmon.sampling import generate
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained, load_run, padded
from harmon.training.draws import stream
from pipelines.errors import ConfigurationError
from pipelines.settings import parse


def draw_pictures(
    trained: Trained,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    px: int | None = None,
    batch: int = 32,
) -> NDArray[np.uint8]:
    """One picture for each prompt, uint8 [n, px, px, 3] RGB; px None: as the last stage trained.

    A picture depends on its prompt, its seed and `sampling` alone, not on the batch it is drawn in.
    """
    side = px or trained.px
    stride = trained.autoencoder.stride
    if side % stride or side <= 0:
        raise ConfigurationError(f"A picture of {side} px cannot be drawn: choose a multiple of {stride} px.")
    drawn = [
        _draw(trained, prompts[start : start + batch], seeds[start : start + batch], sampling, side)
        for start in range(0, len(prompts), batch)
    ]
    return np.concatenate(drawn) if drawn else np.zeros((0, side, side, 3), np.uint8)


def generate_file(
    prompt: str,
    checkpoint: Path,
    out: Path,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    px: int | None = None,
    device: str = "cpu",
) -> Path:
    """Draw one picture with the run folder `checkpoint` and write it to `out` (the suffix names the format).

    `sampling` None: as the run says its pictures are drawn.

    Raises:
        ConfigurationError: no checkpoint there, a size that does not fit, or a format that Pillow lacks.
    """
    if out.suffix.lower() not in Image.registered_extensions():
        raise ConfigurationError(f"{out} has no picture format: end it in .png or .jpg.")
    trained = load_run(checkpoint, device)
    sampling = sampling or parse(SamplingConfig, trained.sampling, f"{checkpoint}/model")
    pixels = draw_pictures(trained, [prompt], [seed], sampling, px)[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(out)
    return out


def _draw(
    trained: Trained, prompts: Sequence[str], seeds: Sequence[int], sampling: SamplingConfig, side: int
) -> NDArray[np.uint8]:
    asked = [trained.text.generation_prompt(prompt) for prompt in prompts]
    if sampling.cfg != 1:
        asked += [trained.text.generation_prompt(None)] * len(prompts)
    device = trained.model.device
    ids, mask = padded(asked, trained.text.pad, device)
    grid = side // trained.autoencoder.stride
    latents = generate(
        trained.model,
        ids,
        mask,
        (grid, grid),
        **sampling.arguments(),
        generator=[torch.Generator().manual_seed(stream(seed, "picture") % 2**63) for seed in seeds],
    )
    with torch.no_grad():
        pixels = trained.autoencoder.decode(latents).permute(0, 2, 3, 1)
    # a sampler that diverged gives values that are not numbers: they become grey, not undefined integers
    levels = ((pixels.nan_to_num(0.0, 1.0, -1.0) + 1) * 127.5).clamp(0, 255).round()
    result: NDArray[np.uint8] = levels.to(torch.uint8).cpu().numpy()
    return result
