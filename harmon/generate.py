"""Pictures from prompts: what `harmon generate` and the evaluation do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from harmon.sampling import CfgSchedule, generate
from harmon.trained import Trained, load_run, padded
from harmon.training.draws import stream
from harmon.training.stage import Departure
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse


class SamplingConfig(Settings):
    """How pictures are drawn. The defaults are the paper's (section 4.1; the released code's defaults)."""

    ar_steps: int = Field(default=64, gt=0)
    """K: iterations in which the tokens of a picture are drawn."""
    cfg: float = Field(default=3.0, ge=1)
    """Classifier-free guidance; 1 is none."""
    cfg_schedule: CfgSchedule = "constant"
    """`linear` raises the guidance from 1 with the share of tokens drawn."""
    diffusion_steps: str = Field(default="100", pattern=r"^\d+(,\d+)*$")
    """T: steps of the diffusion head for each token."""
    temperature: float = Field(default=1.0, gt=0)
    """Factor on the noise of every diffusion step."""
    clip_x0: float | None = Field(default=None, gt=0)
    """Bound on the predicted clean token at every diffusion step. The paper has none; models of a few million
    parameters need one, because the first of few steps multiplies their errors by hundreds."""

    def departures(self) -> list[Departure]:
        """What differs from the paper's sampling."""
        paper, here = SamplingConfig().model_dump(), self.model_dump()
        return [Departure(f"sampling.{key}", paper[key], here[key]) for key in here if here[key] != paper[key]]


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
        steps=sampling.ar_steps,
        cfg=sampling.cfg,
        cfg_schedule=sampling.cfg_schedule,
        diffusion_steps=sampling.diffusion_steps,
        temperature=sampling.temperature,
        clip_x0=sampling.clip_x0,
        generator=[torch.Generator().manual_seed(stream(seed, "picture") % 2**63) for seed in seeds],
    )
    with torch.no_grad():
        pixels = trained.autoencoder.decode(latents).permute(0, 2, 3, 1)
    # a sampler that diverged gives values that are not numbers: they become grey, not undefined integers
    levels = ((pixels.nan_to_num(0.0, 1.0, -1.0) + 1) * 127.5).clamp(0, 255).round()
    result: NDArray[np.uint8] = levels.to(torch.uint8).cpu().numpy()
    return result
