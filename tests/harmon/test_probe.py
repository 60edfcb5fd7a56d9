"""A linear head reads what features hold, and chance is what it reads from labels that mean nothing."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from harmon.evaluation.features import Features
from harmon.evaluation.labelled import LabelledPicture, LabelledSet
from harmon.evaluation.probe import TRUST, Lars, ProbeConfig, ProbeHead, probe, score
from pipelines.errors import HarmonError

CLASSES, WIDTH, PICTURES = 10, 32, 1500


def clouds(spread: float = 1.0, seed: int = 0) -> tuple[Features, LabelledSet]:
    """Ten clouds of features whose channels differ a thousandfold in scale; every third picture is held back."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=PICTURES)
    values = random.normal(size=(CLASSES, WIDTH))[labels] * 2 + spread * random.normal(size=(PICTURES, WIDTH))
    values = values * np.logspace(-1.5, 1.5, WIDTH) + 5
    pictures = tuple(LabelledPicture(bytes, f"class {label}", row % 3 > 0) for row, label in enumerate(labels))
    return Features(values.astype(np.float32), tuple(range(PICTURES)), 0), LabelledSet("clouds", pictures)


def test_a_separable_set_is_read_and_shuffled_labels_give_chance() -> None:
    features, labelled = clouds()
    probed, _ = probe("clouds", features, labelled, ProbeConfig())
    assert probed.top1.n == 500 and probed.trained_on == 1000
    assert probed.top1.share >= 0.95
    assert probed.top5.share >= probed.top1.share
    chance = probed.shuffled.chance
    assert chance is not None
    assert abs(chance - 1 / CLASSES) < 0.03
    assert abs(probed.shuffled.share - chance) < 4 * (chance * (1 - chance) / 500) ** 0.5


def test_features_without_a_trace_of_the_label_are_read_at_chance() -> None:
    features, labelled = clouds()
    noise = np.random.default_rng(1).normal(size=features.values.shape).astype(np.float32)
    probed, _ = probe("noise", Features(noise, features.rows, 0), labelled, ProbeConfig())
    assert probed.top1.chance is not None and abs(probed.top1.share - probed.top1.chance) < 0.06


def test_chance_is_the_commonest_training_labels_or_a_blind_guess() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    pictures = [LabelledPicture(bytes, label, True) for label in labels]
    pictures += [LabelledPicture(bytes, label, False) for label in ("a", "b", "b", "c")]  # the commonest is now rare
    labelled = LabelledSet("few", tuple(pictures)).checked()
    assert labelled.classes == ("a", "b", "c")
    head = ProbeHead(2, 3).eval()
    truth = np.array([0, 1, 1, 2])
    values = np.zeros((4, 2), dtype=np.float32)
    assert [score(head, values, truth, k).chance for k in (1, 2, 5)] == [1 / 3, 0.75, 1.0]
    assert score(head, values, truth, 5).right == 4  # of three classes all are among the likeliest five


def test_a_set_of_many_batches_is_trained_in_batches() -> None:
    features, labelled = clouds()
    probed, _ = probe("clouds", features, labelled, ProbeConfig(batch=300, learning_rate=1.0))
    assert probed.top1.share >= 0.95


def test_the_recipe_is_maes() -> None:
    config = ProbeConfig()
    assert (config.learning_rate, config.batch, config.epochs, config.warm_up) == (6.4, 16384, 90, 10)
    steps, warm_up = config.steps(1_281_167)
    assert (steps, warm_up) == (90 * 78, 10 * 78)
    rates = [config.rate(step, steps, warm_up) for step in range(steps)]
    assert rates[0] == 0 and rates[warm_up] == 6.4 == max(rates)
    assert rates[warm_up // 2] == pytest.approx(3.2) and rates[-1] < 1e-5
    assert config.rate((steps + warm_up) // 2, steps, warm_up) == pytest.approx(3.2)
    head = ProbeHead(4, 3)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    assert head.norm.eps == 1e-6


def test_lars_moves_a_matrix_by_a_share_of_its_norm_and_a_vector_by_its_gradient() -> None:
    matrix, vector = torch.nn.Parameter(torch.tensor([[3.0, 4.0]])), torch.nn.Parameter(torch.tensor([1.0]))
    lars = Lars([matrix, vector], lr=2.0, momentum=0.5, weight_decay=0.0)
    expected, moved = matrix.detach().clone(), torch.zeros(1, 2)
    for _ in range(2):
        matrix.grad, vector.grad = torch.tensor([[0.0, 10.0]]), torch.tensor([0.25])
        moved = 0.5 * moved + TRUST * expected.norm() * torch.tensor([[0.0, 1.0]])
        expected = expected - 2.0 * moved
        lars.step()
    torch.testing.assert_close(matrix.detach(), expected)
    torch.testing.assert_close(vector.detach(), torch.tensor([1 - 2 * 0.25 - 2 * (0.125 + 0.25)]))


def test_lars_leaves_what_has_no_gradient_and_no_norm_finite() -> None:
    zero = torch.nn.Parameter(torch.zeros(2, 2))
    lars = Lars([zero], lr=1.0, momentum=0.0, weight_decay=0.0)
    zero.grad = torch.ones(2, 2)
    lars.step()
    assert torch.equal(zero.detach(), -torch.ones(2, 2))  # without a norm of its own it follows its gradient
    zero.grad = torch.zeros(2, 2)
    lars.step()
    assert torch.isfinite(zero).all()


def test_one_side_left_without_a_readable_picture_is_an_error_that_says_so() -> None:
    features, labelled = clouds()
    rows = tuple(row for row in features.rows if labelled.pictures[row].trains)
    with pytest.raises(HarmonError, match="clouds has no picture left on one side"):
        probe("clouds", Features(features.values[list(rows)], rows, 500), labelled, ProbeConfig())


def test_a_limited_set_keeps_all_kinds_of_pictures() -> None:
    def read(row: int) -> bytes:
        return bytes([row % 256])

    pictures = tuple(LabelledPicture(partial(read, row), f"{row // 100}", row % 5 > 0) for row in range(1000))
    limited = LabelledSet("sorted by label", pictures).limited(200)
    assert len(limited.pictures) == 200 and len(limited.classes) == 10
    assert limited.pictures == LabelledSet("sorted by label", pictures).limited(200).pictures
    assert min(Counter(picture.label for picture in limited.pictures).values()) > 5
