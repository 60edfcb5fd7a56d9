"""The benchmarks of the model run at a toy size; they fail by themselves where results differ."""

from benchmarks import generation, packing, training_step


def test_the_train_step_equals_the_plain_path_and_is_timed() -> None:
    ratios = training_step.main(["--quick", "--repeats", "1"])
    assert set(training_step.GOALS) <= set(ratios) and all(ratio > 0 for ratio in ratios.values())


def test_generation_equals_the_plain_path_and_is_timed() -> None:
    ratios = generation.main(["--quick", "--repeats", "1"])
    assert set(generation.GOALS) <= set(ratios) and all(ratio > 0 for ratio in ratios.values())


def test_packed_chats_equal_padded_ones_compute_less_and_are_timed() -> None:
    ratios = packing.main(["--quick", "--repeats", "1"])
    assert all(ratios[f"{task}, packed"] < ratios[f"{task}, padded"] for task in packing.LENGTHS)
    assert ratios["text, seconds"] > 0
