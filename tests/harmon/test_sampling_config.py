import inspect

import pytest
from pydantic import ValidationError

from harmon.sampling import generate
from harmon.sampling_config import SamplingConfig


def test_every_field_is_an_argument_of_generation_and_none_departs_from_the_paper() -> None:
    assert set(SamplingConfig().arguments()) <= set(inspect.signature(generate).parameters)
    assert SamplingConfig().departures() == []
    changed = SamplingConfig(cfg_every=2, diffusion_steps="50", diffusion_steps_last=5)
    assert {departure.key for departure in changed.departures()} == {
        "sampling.cfg_every",
        "sampling.diffusion_steps",
        "sampling.diffusion_steps_last",
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cfg_interval": (0.7, 0.2)}, "no interval"),
        ({"cfg_interval": (0.0, 1.5)}, "no interval"),
        ({"diffusion_steps": "10,5", "diffusion_steps_last": 2}, "single number"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SamplingConfig(**fields)
