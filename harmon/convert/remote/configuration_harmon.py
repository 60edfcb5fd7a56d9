"""config.json of a Harmon folder."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from harmon.convert.autoencoders import Sizes, parse_sizes
from harmon.model.config import HarmonConfig


class PretrainedHarmonConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of a Harmon model and of its autoencoder.

    `harmon` holds the model's sizes, `autoencoder` its autoencoder's, `px` the side of the pictures it draws
    unless asked otherwise, `sampling` how it draws them where that departs from the paper, and `released`
    what only the released files need to be written again.
    """

    model_type = "harmon"

    def __init__(
        self,
        harmon: dict[str, Any] | None = None,
        autoencoder: dict[str, Any] | None = None,
        px: int = 512,
        sampling: dict[str, Any] | None = None,
        released: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.harmon = harmon or HarmonConfig.preset("harmon-0.5b").model_dump(mode="json")
        self.autoencoder = autoencoder or {}
        self.px = px
        self.sampling = sampling or {}
        self.released = released or {}
        super().__init__(**kwargs)

    @property
    def model_sizes(self) -> HarmonConfig:
        """`harmon`, typed."""
        return HarmonConfig.model_validate(self.harmon)

    @property
    def autoencoder_sizes(self) -> Sizes:
        """`autoencoder`, typed; the released one where nothing is said."""
        return parse_sizes(self.autoencoder)
