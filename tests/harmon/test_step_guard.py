"""Which train steps are skipped."""

import math

import pytest
import torch

from harmon.training.execution import GuardConfig
from harmon.training.guard import Guard

CPU = torch.device("cpu")


def judged(guard: Guard, loss: float, norm: float = 1.0) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


def calm(guard: Guard, steps: int, level: float = 1.0) -> list[bool]:
    return [judged(guard, level + 0.01 * math.sin(step), level + 0.01 * math.cos(step)) for step in range(steps)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(value: float):
    for sigmas in (None, 6.0):
        guard = Guard(GuardConfig(sigmas=sigmas), CPU)
        assert not any(calm(guard, 100))
        assert judged(guard, value) and judged(guard, 1.0, value)
        assert not any(calm(guard, 10))  # and it is not remembered


def test_a_spike_of_loss_or_norm_is_skipped_and_a_new_level_is_learnt():
    guard = Guard(GuardConfig(sigmas=6.0, window=32), CPU)
    assert not any(calm(guard, 40))
    assert judged(guard, 3.0) and judged(guard, 1.0, 3.0)
    assert not judged(guard, 0.1, 0.1)  # falling is no spike
    skipped = calm(guard, 64, level=5.0)
    assert skipped[0] and not any(skipped[32:])


def test_nothing_is_a_spike_before_half_the_window_is_known():
    guard = Guard(GuardConfig(sigmas=6.0, window=32), CPU)
    calm(guard, 15)
    assert not judged(guard, 100.0)
    assert not Guard(GuardConfig(), CPU).config.sigmas  # off by default, as in the paper


def test_patience_counts_steps_in_a_row():
    guard = Guard(GuardConfig(patience=3), CPU)
    for value in (math.nan, math.nan, 1.0, math.nan, math.nan):
        judged(guard, value)
        assert not guard.spent()
    judged(guard, math.nan)
    assert guard.spent()


def test_once_patience_has_ended_no_further_step_is_taken_however_late_the_host_looks():
    guard = Guard(GuardConfig(patience=2), CPU)
    assert [judged(guard, value) for value in (1.0, math.nan, math.nan, 1.0, 1.0)] == [False, True, True, True, True]
    assert guard.spent() == 3  # steps since, with the one in which it ended
