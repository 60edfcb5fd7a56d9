"""Drawing a picture against the same mathematics computed plainly, per CPU-second; and what approximations change.

python -m benchmarks.generation [--quick] [--repeats 5] [--only "DiSA 50 to 5"]
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.middle import MIDDLE, QUICK, QUICK_KL, make_model, matmul_peak, medians
from harmon import flops
from harmon.model.autoencoder import KlConfig
from harmon.model.mar import Grid
from harmon.sampling import generate, plan
from harmon.sampling_config import SamplingConfig
from pipelines.errors import HarmonError

PROMPT = 32
EXACT = SamplingConfig(ar_steps=16, diffusion_steps="100")  # the paper's 100 diffusion steps
OPTIONS = {
    "exact": EXACT,
    "DiSA 50 to 5": EXACT.model_copy(update={"diffusion_steps": "50", "diffusion_steps_last": 5}),
    "DiSA, 8 AR steps": EXACT.model_copy(update={"diffusion_steps": "50", "diffusion_steps_last": 5, "ar_steps": 8}),
    "DPM-Solver++, 20 steps": EXACT.model_copy(update={"diffusion_steps": "20", "sampler": "dpm++"}),
    "guidance in the second half": EXACT.model_copy(update={"cfg_interval": (0.5, 1.0)}),
    "unconditional half every 2": EXACT.model_copy(update={"cfg_every": 2}),
    "tokens read every 4": EXACT.model_copy(update={"refresh_every": 4}),
    "16 AR x 25 diffusion steps": EXACT.model_copy(update={"diffusion_steps": "25"}),
}
GOALS = {"exact": 0.85, "DiSA 50 to 5": 0.45, "DiSA, 8 AR steps": 0.25}
TOLERANCE = 1e-3  # of latents, relative to the largest: rounding grows along 100 diffusion steps in each of 16 AR steps


class _FixedDraws:
    """The same order for both paths; noise from one generator, kept to be handed out again."""

    def __init__(self, order: Tensor, seed: int) -> None:
        self.order, self.generator = order, torch.Generator().manual_seed(seed)
        self.kept: list[Tensor] = []

    def orders(self, images: int, positions: int) -> Tensor:
        return self.order

    def noise(self, steps: int, images: int, predicted: int, channels: int) -> Tensor:
        self.kept.append(torch.randn(steps, images, predicted, channels, generator=self.generator))
        return self.kept[-1]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return ratios to the plain path; HarmonError where the exact path does not compute the same."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a toy size: whether it runs, not how fast")
    parser.add_argument("--repeats", type=int, default=5, help="turns whose median is taken")
    parser.add_argument("--only", action="append", choices=list(OPTIONS), help="besides exact; all if left out")
    asked = parser.parse_args(arguments)
    options = {name: OPTIONS[name] for name in OPTIONS if not asked.only or name in ("exact", *asked.only)}
    torch.set_num_threads(1)
    config, kl = (QUICK, QUICK_KL) if asked.quick else (MIDDLE, KlConfig())
    model, autoencoder, plain_autoencoder = make_model(config, kl)
    model.eval()
    side = config.mar.native_grid
    grid = Grid(side, side)
    ids = torch.randint(config.llm.vocab_size, (2, PROMPT))
    mask = torch.arange(PROMPT) < torch.tensor([[PROMPT], [10]])
    order = torch.randperm(grid.positions).unsqueeze(0)
    shapes = [turn.masked - turn.masked_next for turn in plan(grid.positions, EXACT.ar_steps, 3.0, "constant")]
    drawn: dict[str, Tensor] = {}

    def ours(name: str) -> Callable[[], None]:
        def work() -> None:
            draws = _FixedDraws(order, 1)
            drawn[name] = generate(model, ids, mask, tuple(grid), draws=draws, **OPTIONS[name].arguments())
            with torch.no_grad():
                autoencoder.decode(drawn[name])

        return work

    def theirs() -> None:
        draws = _FixedDraws(order, 1)
        noises = [draws.noise(100, 1, shape, config.mar.token_channels) for shape in shapes]
        drawn["plain"], _ = plain.generate(
            model, plain_autoencoder, ids, mask, grid, EXACT.ar_steps, EXACT.cfg, EXACT.diffusion_steps, order, noises
        )

    peak = matmul_peak()
    seconds = medians({"plain": theirs, **{name: ours(name) for name in options}}, asked.repeats)
    peak = max(peak, matmul_peak())
    difference = _relative(drawn["exact"], drawn["plain"])
    if not difference <= TOLERANCE:
        raise HarmonError(f"exact latents differ from the plain path's by {difference:.1e}; mend harmon.sampling.")
    print(f"one picture, one thread, median of {asked.repeats}; matrix products reach {peak:.0f} GFLOP/s")
    print(f"exact latents equal the plain path's to {difference:.0e}; plain: {seconds['plain']:.2f} s")
    ratios = {}
    for name, sampling in options.items():
        ratios[name] = seconds[name] / seconds["plain"]
        cost = flops.total(flops.generated_image(config, grid, PROMPT, sampling, kl))
        rate = cost / 1e9 / seconds[name]
        goal = f"goal {GOALS[name]:.2f}" if name in GOALS else "no goal"
        print(
            f"{name:<28} {seconds[name]:6.2f} s: {ratios[name]:.2f}x ({goal}); {rate:.0f} GFLOP/s, "
            f"{rate / peak:.0%} of the peak; latents differ by {_relative(drawn[name], drawn['exact']):.1e}"
        )
    return ratios


def _relative(latents: Tensor, expected: Tensor) -> float:
    return float((latents - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
