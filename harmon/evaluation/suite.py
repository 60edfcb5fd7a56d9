"""A suite of scenes: how many prompts are drawn and scenes asked about, all pure functions of its seed.

`held_out`: prompts for one object whose colour and shape were never trained together; `seen`: one object of a trained
pair; `two`: two objects of trained pairs; `asked`: scenes with questions.
"""

from typing import Literal, get_args

from pydantic import Field

from pipelines.scenes import Scene, make_scene
from pipelines.settings import Settings

Prompts = Literal["held_out", "seen", "two"]
PROMPTS: tuple[Prompts, ...] = get_args(Prompts)


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
    asked: int = Field(default=300, ge=0)
    """Scenes of one to four objects asked about: one question of each kind that has an answer."""

    def prompts(self, which: Prompts) -> list[Scene]:
        """The scenes whose short captions are the prompts."""
        number: int = getattr(self, which)
        split: Literal["held_out", "unseen"] = "held_out" if which == "held_out" else "unseen"
        return [make_scene(self.seed, index, 2 if which == "two" else 1, split) for index in range(number)]
