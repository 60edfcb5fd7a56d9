"""A train step (loss and gradients) against the same mathematics computed plainly, per CPU-second.

python -m benchmarks.training_step [--quick] [--repeats 5]
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.middle import MIDDLE, QUICK, QUICK_KL, make_model, matmul_peak, medians
from harmon import flops
from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.model.harmon import Harmon
from harmon.model.mar import Grid, masked_count
from harmon.text import IGNORED, IMAGE_SLOT
from pipelines.errors import HarmonError

BATCH, PROMPT, ANSWER = 4, 32, 64
MASK_RATIO = 0.87  # the mean of the release's truncated normal
GOALS = {"text to image": 0.65, "text to image, latents not cached": 0.95, "image to text": 0.72}
TOLERANCE = 1e-4  # of the loss, and of each gradient relative to the largest of its tensor


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return ratios to the plain path; HarmonError where the two do not compute the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a toy size: whether it runs, not how fast")
    parser.add_argument("--repeats", type=int, default=5, help="turns whose median is taken")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config, kl = (QUICK, QUICK_KL) if asked.quick else (MIDDLE, KlConfig())
    model, autoencoder, plain_autoencoder = make_model(config, kl)
    side = config.mar.native_grid
    grid, px = Grid(side, side), side * kl.stride
    pixels = torch.rand(BATCH, 3, px, px) * 2 - 1
    cases, costs = _text_to_image(model, autoencoder, plain_autoencoder, pixels, grid, kl)
    more_cases, more_costs = _image_to_text(model, autoencoder, plain_autoencoder, pixels, grid, kl)
    cases, costs = cases | more_cases, costs | more_costs
    for task in ("text to image", "image to text"):
        _check_equal(model, task, cases[task], cases[f"{task}, plain"])
    peak = matmul_peak()
    seconds = medians(cases, asked.repeats)
    peak = max(peak, matmul_peak())
    ratios = {}
    print(f"batch {BATCH}, {px} px, one thread, median of {asked.repeats}; matrix products reach {peak:.0f} GFLOP/s")
    for name, cost in costs.items():
        base = f"{name.split(',')[0]}, plain"
        ratios[name] = seconds[name] / seconds[base]
        rate = BATCH * cost / 1e9 / seconds[name]
        goal = f"goal {GOALS[name]:.2f}" if name in GOALS else "no goal"
        print(
            f"{name:<38} {seconds[name]:6.2f} s of {seconds[base]:6.2f} s plain: {ratios[name]:.2f}x ({goal}); "
            f"{rate:.0f} GFLOP/s, {rate / peak:.0%} of the peak"
        )
    return ratios


Cases = tuple[dict[str, Callable[[], Tensor]], dict[str, float]]


def _text_to_image(
    model: Harmon,
    autoencoder: KlAutoencoder,
    plain_autoencoder: KlAutoencoder,
    pixels: Tensor,
    grid: Grid,
    kl: KlConfig,
) -> Cases:
    config, positions = model.config, grid.positions
    masked, repeats = masked_count(positions, MASK_RATIO), config.head.batch_mul
    latents = autoencoder.encode(pixels)
    lengths = torch.linspace(PROMPT // 2, PROMPT, BATCH).long()
    text = torch.randint(config.llm.vocab_size, (BATCH, PROMPT))
    mask = torch.arange(PROMPT) < lengths.unsqueeze(1)
    order = torch.stack([torch.randperm(positions) for _ in range(BATCH)])
    draws = (
        torch.randint(1000, (repeats, BATCH, positions)),
        torch.randn(repeats, BATCH, positions, config.mar.token_channels),
    )

    def ours(given: Tensor) -> Tensor:
        loss = model.text_to_image_loss(given, text, mask, order, masked, *draws)
        return _backward(model, loss.total / loss.count)

    def theirs() -> Tensor:
        given = plain_autoencoder.encode(pixels)
        return _backward(model, plain.text_to_image_loss(model, given, text, mask, order, masked, *draws))

    name = "text to image"
    cost = flops.total(flops.text_to_image(config, grid, masked, PROMPT))
    online = flops.total(flops.text_to_image(config, grid, masked, PROMPT, kl))
    cases = {
        f"{name}, plain": theirs,
        name: lambda: ours(latents),
        f"{name}, latents not cached": lambda: ours(autoencoder.encode(pixels)),
    }
    return cases, {name: cost, f"{name}, latents not cached": online}


def _image_to_text(
    model: Harmon,
    autoencoder: KlAutoencoder,
    plain_autoencoder: KlAutoencoder,
    pixels: Tensor,
    grid: Grid,
    kl: KlConfig,
) -> Cases:
    config = model.config
    latents = autoencoder.encode(pixels)
    slots = torch.full((BATCH, grid.positions + config.mar.buffer_size), IMAGE_SLOT)
    text = torch.randint(config.llm.vocab_size, (BATCH, ANSWER))
    ids = torch.cat([text[:, :4], slots, text[:, 4:]], 1)
    labels, answered = ids.clone(), ANSWER // 2
    labels[:, :-answered] = IGNORED
    mask = torch.ones_like(ids, dtype=torch.bool)

    def ours(given: Tensor) -> Tensor:
        loss = model.image_to_text_loss(given, ids, labels, grad_scale=None)
        return _backward(model, loss.total / loss.count)

    def theirs() -> Tensor:
        return _backward(model, plain.image_to_text_loss(model, plain_autoencoder.encode(pixels), ids, labels, mask))

    name = "image to text"
    cost = flops.total(flops.image_to_text(config, grid, ANSWER, answered))
    online = flops.total(flops.image_to_text(config, grid, ANSWER, answered, kl))
    cases = {
        f"{name}, plain": theirs,
        name: lambda: ours(latents),
        f"{name}, latents not cached": lambda: ours(autoencoder.encode(pixels)),
    }
    return cases, {name: cost, f"{name}, latents not cached": online}


def _backward(model: Harmon, loss: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _check_equal(model: Harmon, task: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Compare losses and all gradients."""
    results = []
    for work in (ours, theirs):
        loss = work()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss, gradients))
    (loss, gradients), (expected, expected_gradients) = results
    errors = {"loss": (loss - expected).abs().item() / expected.abs().item()}
    for name, gradient in expected_gradients.items():
        largest = gradient.abs().max().clamp(min=1e-12)
        got = gradients.get(name, torch.zeros_like(gradient))
        errors[name] = ((got - gradient).abs().max() / largest).item()
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE:
        raise HarmonError(f"{task}: {worst} differs from the plain path by {errors[worst]:.1e}; mend harmon.model.")
    print(f"{task}: loss and {len(expected_gradients)} gradients equal to {errors[worst]:.0e} ({worst})")


if __name__ == "__main__":
    main()
