"""Replay of the losses with their gradients, the weight decay groups, and the release's order of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from harmon.model.harmon import LossSum, has_weight_decay
from harmon.model.mar import masked_count
from harmon.parity.golden import Golden, Line, relative_error


def text_to_image(golden: Golden) -> Iterator[Line]:
    model, repeats = golden.model, golden.model.config.head.batch_mul
    order, rate, timesteps, noise = (
        golden.tensor(f"draw.t2i.{name}") for name in ("000.order", "001.mask_rate", "002.randint", "003.randn_like")
    )
    batch, positions = order.shape
    masked = masked_count(positions, rate.item())
    yield golden.line("t2i.mask_rate", rate.item())
    yield golden.line("t2i.num_masked", masked)
    yield golden.line("t2i.mask", torch.zeros(batch, positions).scatter(1, order[:, :masked], 1.0))
    loss = model.text_to_image_loss(
        golden.encoded("in.t2i.pixel_values"),
        golden.tensor("in.text.input_ids"),
        golden.tensor("in.text.attention_mask"),
        order,
        masked,
        timesteps.view(repeats, batch, positions),
        noise.view(repeats, batch, positions, -1),
    )
    yield from _loss_and_gradients(golden, "t2i", loss)


def image_to_text(golden: Golden) -> Iterator[Line]:
    latents = golden.encoded("in.i2t.pixel_values")
    scale = golden.config["grad_scale"]
    for run, images, factor, suffix in (
        ("i2t", latents, scale, ""),
        ("i2t", latents, None, "_without_scaling"),
        ("textonly", None, scale, ""),
    ):
        ids, labels = golden.ids(f"in.{run}.input_ids"), golden.tensor(f"in.{run}.labels")
        loss = golden.model.image_to_text_loss(images, ids, labels, grad_scale=factor)
        yield from _loss_and_gradients(golden, run, loss, suffix)


def _loss_and_gradients(golden: Golden, run: str, loss: LossSum, suffix: str = "") -> Iterator[Line]:
    """The loss and recorded gradients (only of the plain run), and the norms of all."""
    golden.model.zero_grad(set_to_none=True)
    mean = loss.total / loss.count
    mean.backward()  # type: ignore[no-untyped-call]
    gradients = {
        name: torch.zeros(()) if parameter.grad is None else parameter.grad
        for name, parameter in golden.model.named_parameters()
    }
    if not suffix:
        yield golden.line(f"{run}.loss", mean)
        prefix = f"out.{run}.grad."
        for name in golden.tensors:
            if name.startswith(prefix):
                yield golden.line(name.removeprefix("out."), gradients[name.removeprefix(prefix)], "gradient_rel")
    norms: dict[str, float] = golden.scalar(f"{run}.grad_norms{suffix}")
    got = {name: gradient.norm().item() for name, gradient in gradients.items()}
    errors = [
        relative_error(torch.tensor(got.get(name, math.nan)), torch.tensor(norms.get(name, 0.0)))
        for name in norms.keys() | got.keys()
    ]
    yield Line(f"{run}.grad_norms{suffix}", _worst(errors), golden.tolerance("gradient_rel"))


def _worst(errors: Iterable[float]) -> float:
    """The largest error, NaN counting as infinite."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)


def weight_decay(golden: Golden) -> Iterator[Line]:
    groups = golden.manifest["weight_decay_groups"]
    parameters = list(golden.model.named_parameters())
    for group, decays in (("decay", True), ("no_decay", False)):
        names = {name for name, parameter in parameters if has_weight_decay(name, parameter) == decays}
        yield Line(f"weight_decay_groups.{group} (names that differ)", len(names ^ set(groups[group])), 0.0)


def source_order(golden: Golden) -> Iterator[Line]:
    for number, case in enumerate(golden.manifest["multi_source_sampler_cases"]):
        expected = case["indices"]
        got = list(islice(released_source_order(**{k: case[k] for k in _ORDER_ARGUMENTS}), len(expected)))
        differing = sum(a != b for a, b in zip(got, expected))
        yield Line(f"multi_source_sampler_cases.{number} (indices that differ)", differing, 0.0)


_ORDER_ARGUMENTS = ("repeat", "batch_size", "sizes", "rank", "world_size", "seed", "shuffle")


def released_source_order(
    repeat: list[int], batch_size: int, sizes: list[int], rank: int, world_size: int, seed: int, shuffle: bool
) -> Iterator[int]:
    """Indices into the concatenated sources as the release draws them; our training orders samples by blocks.

    Each source is passed over for ever, shuffled anew each pass by its own generator, and gives `repeat`
    consecutive batches in turn; rank r of w takes every w-th sample of each.
    """
    starts = [sum(sizes[:source]) for source in range(len(sizes))]
    streams = [islice(_endless(size, seed, shuffle), rank, None, world_size) for size in sizes]
    while True:
        for start, stream, batches in zip(starts, streams, repeat):
            for index in islice(stream, batches * batch_size):
                yield start + index


def _endless(size: int, seed: int, shuffle: bool) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).tolist() if shuffle else range(size)
