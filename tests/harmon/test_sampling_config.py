import inspect

import pytest
from odd_model import ODD
from pydantic import ValidationError

from harmon.model.config import HarmonConfig
from harmon.sampling import generate
from harmon.sampling_config import SamplingConfig
from pipelines.errors import ConfigurationError


def test_every_field_is_an_argument_of_generation_and_none_departs_from_the_paper() -> None:
    assert set(SamplingConfig().arguments()) <= set(inspect.signature(generate).parameters)
    published = HarmonConfig.preset("harmon-1.5b")
    assert SamplingConfig().departures(published) == []
    changed = SamplingConfig(cfg_every=2, diffusion_steps="50", diffusion_steps_last=5)
    assert {departure.key for departure in changed.departures(published)} == {
        "sampling.cfg_every",
        "sampling.diffusion_steps",
        "sampling.diffusion_steps_last",
    }


def test_diffusion_steps_that_nobody_names_are_the_models() -> None:
    assert SamplingConfig().resolved(ODD).diffusion_steps == ODD.head.sampling_steps == "4,3,2"
    assert SamplingConfig(diffusion_steps="7").resolved(ODD) == SamplingConfig(diffusion_steps="7")
    [departure] = SamplingConfig().departures(ODD)
    assert departure.key == "sampling.diffusion_steps" and SamplingConfig(diffusion_steps="100").departures(ODD) == []
    with pytest.raises(ConfigurationError, match="diffusion_steps_last needs a single number of steps, not '4,3,2'"):
        SamplingConfig(diffusion_steps_last=2).resolved(ODD)


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
