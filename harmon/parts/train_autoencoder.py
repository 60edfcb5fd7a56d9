"""Trains the demo's tiny KL-16: the true architecture at a quarter of its width, on scenes.

    python -m harmon.parts.train_autoencoder             trains and writes harmon/parts/demo/kl.safetensors
    python -m harmon.parts.train_autoencoder --measure   prints the fidelity of what is written there

The loss is the mean absolute and squared error of pixels plus a small divergence from a unit normal. The
paper's autoencoder was also trained against a perceptual and an adversarial loss, which need other networks.
"""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.parts.fidelity import fidelity, pixels
from pipelines.scenes import make_scene

KL_FILE = Path(__file__).parent / "demo" / "kl.safetensors"
SEED = 3
SIZES = KlConfig(base_channels=32, channel_multipliers=(1, 1, 1, 2, 2), res_blocks=1)
"""Narrower and shallower than the released one, with its stride of 16 and its 16 latent channels."""

STEPS = 1000
BATCH = 16
SIDE = 64
LEARNING_RATE = 2e-3
WARM_UP = 40
DIVERGENCE_WEIGHT = 1e-6
"""Weight of the divergence summed over a latent's values, as in latent diffusion's autoencoders."""

SINGLE_SHARE = 2 / 3
"""Share of one-object scenes; the others have one to four."""

SIDES = (64, 128)
"""Picture sides that the fidelity is measured at."""


def batch(step: int) -> Tensor:
    """Scenes never drawn before, [BATCH, 3, SIDE, SIDE]."""
    single = round(BATCH * SINGLE_SHARE)
    scenes = [make_scene(SEED, step * BATCH + i, objects=1 if i < single else None) for i in range(BATCH)]
    return pixels(scenes, SIDE)


def loss(model: KlAutoencoder, images: Tensor, draw: torch.Generator) -> Tensor:
    """Reconstruction through a sample of the posterior, plus the weighted divergence."""
    mean, log_variance = model.moments(images).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30.0, 20.0)
    latents = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=draw)
    decoded = model.decoder(model.post_quant_conv(latents))
    error = (decoded - images).abs().mean() + (decoded - images).square().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum() / len(images)
    total: Tensor = error + DIVERGENCE_WEIGHT * divergence
    return total


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, then a cosine down to a hundredth."""
    done = max(0.0, (step - WARM_UP) / max(1, steps - WARM_UP))
    return min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def with_unit_deviation(model: KlAutoencoder) -> KlAutoencoder:
    """The same weights, the scale set so that the latents of unseen scenes have unit deviation."""
    with torch.inference_mode():
        deviation = float(model.encode(batch(STEPS + 1)).std()) / model.config.scale
    scaled = KlAutoencoder(model.config.model_copy(update={"scale": round(1 / deviation, 4)}))
    scaled.load_state_dict(model.state_dict())
    return scaled


def train(file: Path, steps: int) -> None:
    """Trains from scratch and writes the weights, also after each fifth of the steps."""
    torch.manual_seed(SEED)
    model = KlAutoencoder(SIZES)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    draw, started = torch.Generator().manual_seed(SEED), time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(step, steps)
        value = loss(model, batch(step), draw)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1} loss {value.item():.4f} after {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if (step + 1) % max(1, steps // 5) == 0:
            with_unit_deviation(model).save(file)
            print(json.dumps(asdict(fidelity(model, SIDE, 100))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=KL_FILE, help="receives or holds the weights")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--measure", action="store_true", help="only measure the weights in the file")
    arguments = parser.parse_args()
    if not arguments.measure:
        train(arguments.file, arguments.steps)
    autoencoder = KlAutoencoder.from_file(arguments.file)
    for side in SIDES:
        print(json.dumps(asdict(fidelity(autoencoder, side))))


if __name__ == "__main__":
    main()
