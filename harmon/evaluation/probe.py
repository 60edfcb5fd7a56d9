"""Linear probing: how well one linear layer reads labels from a frozen encoder's features.

The paper gives no recipe; this is MAE's (arXiv 2111.06377, table 10; its released `main_linprobe.py`): batch
normalisation without weights, one linear layer, LARS, a base rate of 0.1 for 256 pictures and a batch of 16,384, 90
epochs of which 10 warm up, then half a cosine, no weight decay.

Every accuracy stands beside two others: what needs no features (chance: naming the commonest classes, or
any), and what the same head gets when it is trained on labels that were shuffled.

Shape letters: n pictures, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from harmon.evaluation.features import Features
from harmon.evaluation.labelled import LabelledSet
from harmon.evaluation.scenes import Score
from harmon.seeds import stream
from pipelines.errors import HarmonError
from pipelines.settings import Settings

TRUST = 0.001  # LARS: a step moves a matrix by this share of its norm, times the rate (MAE's released code)
INITIAL_DEVIATION = 0.01  # of the head's weights (MAE's released code)
EPS = 1e-6


class ProbeConfig(Settings):
    """How a head is trained; the defaults are MAE's."""

    learning_rate: float = Field(default=0.1 * 16384 / 256, gt=0)
    """At the end of the warm-up. A step's length follows from it alone, so it is not lowered for a smaller batch."""
    batch: int = Field(default=16384, gt=0)
    epochs: int = Field(default=90, gt=0)
    warm_up: int = Field(default=10, ge=0)
    """Epochs of the 90; a larger number of epochs keeps their share."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    least_steps: int = Field(default=1000, gt=0)
    """Train steps at least: a set of few batches is passed through more often. ImageNet has 7,020 in 90 epochs."""
    seed: int = 0

    def steps(self, pictures: int) -> tuple[int, int]:
        """(train steps, of which warm up) for a set of so many pictures."""
        found = max(self.epochs * max(1, pictures // self.batch), self.least_steps)
        return found, round(found * self.warm_up / self.epochs)

    def rate(self, step: int, steps: int, warm_up: int) -> float:
        """Learning rate of step `step`, counted from 0: a line up from 0, then half a cosine down to 0."""
        if step < warm_up:
            return self.learning_rate * step / warm_up
        return self.learning_rate * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rates (arXiv 1708.03888) as MAE uses them: a matrix moves by a share of its own norm, a
    vector (the biases) by its gradient; then momentum.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step from the gradients that stand; there is no closure to call."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        change = parameter.grad
        if parameter.ndim > 1:
            change = change + group["weight_decay"] * parameter
            own, asked = parameter.norm(), change.norm()
            known = (own > 0) & (asked > 0)
            change = change * torch.where(known, TRUST * own / asked.clamp_min(torch.finfo(own.dtype).tiny), 1.0)
        held = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        held.mul_(group["momentum"]).add_(change)
        parameter.add_(held, alpha=-group["lr"])


class ProbeHead(nn.Module):
    """Features [n, F] -> logits [n, K]: normalised by their own statistics, then one linear layer."""

    def __init__(self, width: int, classes: int, draw: torch.Generator | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=EPS)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=INITIAL_DEVIATION, generator=draw)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features_nF: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.norm(features_nF))
        return logits

    def normalised(self, maps_nDhw: Tensor) -> Tensor:
        """Maps in the head's own units, position by position: pooled and given to `linear` they are the same logits,
        since a mean and a normalisation by fixed statistics may change places.
        """
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        if len(mean) == maps_nDhw.shape[1]:  # the head reads means over positions
            return F.batch_norm(maps_nDhw, mean, variance, eps=EPS)
        out: Tensor = self.norm(maps_nDhw.flatten(1)).view_as(maps_nDhw)
        return out


@dataclass(frozen=True)
class Probed:
    """What a head reads from one encoder, on the pictures held back. `shuffled`: top-1 after training on shuffled
    labels, which should be chance."""

    encoder: str
    width: int
    trained_on: int
    classes: int
    steps: int
    top1: Score
    top5: Score
    shuffled: Score
    unreadable: int

    def report(self) -> dict[str, Any]:
        """As JSON."""
        scores = {name: getattr(self, name).report() for name in ("top1", "top5", "shuffled")}
        return {**vars(self), **scores}


def train_head(
    values_nF: NDArray[np.float32], labels_n: NDArray[np.int64], classes: int, config: ProbeConfig, device: str = "cpu"
) -> ProbeHead:
    """A head trained on features and the numbers of their classes, in evaluation mode.

    Raises HarmonError where fewer than two pictures are given, which have no statistics.
    """
    if len(values_nF) < 2:
        raise HarmonError(f"A head cannot be trained on {len(values_nF)} pictures; give at least two.")
    draw = torch.Generator().manual_seed(stream(config.seed, "probe") % 2**63)
    head = ProbeHead(values_nF.shape[1], classes, draw).to(device).train()
    features, labels = torch.from_numpy(values_nF).to(device), torch.from_numpy(labels_n).to(device)
    size = min(config.batch, len(features))
    optimiser = Lars(head.parameters(), config.learning_rate, config.momentum, config.weight_decay)
    steps, warm_up = config.steps(len(features))
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < size:  # what is left of an epoch is less than a batch, and dropped
            order = torch.randperm(len(features), generator=draw)
        chosen, order = order[:size].to(device), order[size:]
        whole = size == len(features)  # one batch: its order is of no consequence
        logits = head(features if whole else features[chosen])
        loss = F.cross_entropy(logits, labels if whole else labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step, steps, warm_up)
        optimiser.step()
    return head.eval()


def probe(
    name: str, features: Features, labelled: LabelledSet, config: ProbeConfig, device: str = "cpu"
) -> tuple[Probed, ProbeHead]:
    """Train a head on the features of `labelled`'s training pictures and measure it on those held back.

    Raises HarmonError where a side has no picture that could be decoded.
    """
    number = {label: place for place, label in enumerate(labelled.classes)}
    pictures = [labelled.pictures[row] for row in features.rows]
    labels_n = np.array([number[picture.label] for picture in pictures], dtype=np.int64)
    trains_n = np.array([picture.trains for picture in pictures])
    if trains_n.all() or not trains_n.any():
        raise HarmonError(f"{labelled.name} has no picture left on one side: all of them are unreadable.")
    train, held_back = features.values[trains_n], features.values[~trains_n]
    classes = len(labelled.classes)
    head = train_head(train, labels_n[trains_n], classes, config, device)
    shuffled = np.random.default_rng(stream(config.seed, "shuffled")).permutation(labels_n[trains_n])
    control = train_head(train, shuffled, classes, config, device)
    truth = labels_n[~trains_n]
    probed = Probed(
        encoder=name,
        width=features.values.shape[1],
        trained_on=len(train),
        classes=classes,
        steps=config.steps(len(train))[0],
        top1=score(head, held_back, truth, 1, device),
        top5=score(head, held_back, truth, 5, device),
        shuffled=score(control, held_back, truth, 1, device),
        unreadable=features.unreadable,
    )
    return probed, head


def score(
    head: ProbeHead, values_nF: NDArray[np.float32], labels_n: NDArray[np.int64], k: int, device: str = "cpu"
) -> Score:
    """How many labels are among the `k` likeliest classes. Chance is what needs no features: always the first `k`,
    which `LabelledSet.classes` makes the commonest in training, or any `k` blindly, whichever is more often right.
    """
    k = min(k, head.linear.out_features)
    with torch.inference_mode():
        best_nk = head(torch.from_numpy(values_nF).to(device)).topk(k).indices.cpu().numpy()
    right = int((best_nk == labels_n[:, None]).any(1).sum())
    blind = k / head.linear.out_features
    return Score(right, len(labels_n), chance=max(blind, float((labels_n < k).mean())))
