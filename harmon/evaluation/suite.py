"""A suite of scenes: how many prompts are drawn and scenes asked about, all pure functions of its seed.

`held_out`: prompts for one object whose colour and shape were never trained together; `seen`: one object of a trained
pair; `two` and `three`: so many objects of trained pairs; `asked`: scenes with questions.
"""

from typing import Literal, get_args

from pydantic import Field

from pipelines.scenes import Scene, make_scene
from pipelines.settings import Settings

Prompts = Literal["held_out", "seen", "two", "three"]
PROMPTS: tuple[Prompts, ...] = get_args(Prompts)
OBJECTS = {"two": 2, "three": 3}


class SceneSuite(Settings):
    """What of the scenes is measured."""

    seed: int = 20_250_328
    """Seed of the prompts, the pictures and the scenes asked about."""
    held_out: int = Field(default=96, ge=0)
    """Prompts with a colour-shape pair that was never trained."""
    seen: int = Field(default=96, ge=0)
    """One-object prompts with a trained pair."""
    two: int = Field(default=96, ge=0)
    """Two-object prompts."""
    three: int = Field(default=0, ge=0)
    """Three-object prompts, which counting needs to be more than the number two."""
    asked: int = Field(default=300, ge=0)
    """Scenes of one to four objects asked about: one question of each kind that has an answer."""

    def prompts(self, which: Prompts) -> list[Scene]:
        """The scenes whose short captions are the prompts."""
        number: int = getattr(self, which)
        split: Literal["held_out", "unseen"] = "held_out" if which == "held_out" else "unseen"
        return [make_scene(self.seed, index, OBJECTS.get(which, 1), split) for index in range(number)]
