"""The checkpoint that is measured: enough to name it, and to open it in any process that sees its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harmon.convert.contents import Contents
from harmon.convert.released import Named
from harmon.model.config import HarmonConfig
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained, load, open_checkpoint
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import parse

NOTHING_NAMED = Named()
PUBLISHED = ("harmon-0.5b", "harmon-1.5b")


@dataclass(frozen=True)
class Identity:
    """What is known of a checkpoint without making it a model."""

    weights: str
    """Fingerprint (harmon.convert.contents.Contents)."""
    stage: str
    step: int
    px: int
    """Side of the pictures that it reads and draws where nothing else is asked."""
    config: HarmonConfig
    sampling: Mapping[str, Any]
    """How its own description says that it draws."""

    @property
    def size(self) -> str | None:
        """Which published model it has the language model and the MAR of, None where neither."""
        for name in PUBLISHED:
            published = HarmonConfig.preset(name)
            if (self.config.llm, self.config.mar) == (published.llm, published.mar):
                return name
        return None


@dataclass(frozen=True)
class Subject:
    """A checkpoint by its place, and how it is opened."""

    checkpoint: Path
    named: Named = NOTHING_NAMED
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What reports call it: the last parts of its path, and whether its average is meant."""
        return "/".join(self.checkpoint.resolve().parts[-2:]) + (", averaged" if self.named.average else "")

    @cached_property
    def identity(self) -> Identity:
        """Of the checkpoint as it is now. Raises as `harmon.trained.open_checkpoint`."""
        contents: Contents = open_checkpoint(self.checkpoint, self.named)
        return Identity(
            weights=contents.fingerprint(),
            stage=contents.stage,
            step=contents.step,
            px=contents.px,
            config=contents.config,
            sampling=dict(contents.sampling),
        )

    def sampling(self, chosen: Mapping[str, Any]) -> SamplingConfig:
        """How it draws where `chosen` says nothing else, its diffusion steps named."""
        values = {**self.identity.sampling, **chosen}
        return parse(SamplingConfig, values, "the sampling").resolved(self.identity.config)

    def open(self, weights: str) -> Trained:
        """The model, which must still be the one of fingerprint `weights`.

        Raises:
            ConfigurationError: as `harmon.trained.load`, or there is no such float type.
            HarmonError: as `harmon.trained.load`, or other weights lie there by now.
        """
        import torch

        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ConfigurationError(f"There is no float type {self.dtype!r}; name float32 or bfloat16.")
        trained = load(self.checkpoint, self.named, self.device, dtype)
        if trained.fingerprint != weights:
            raise HarmonError(
                f"{self.checkpoint} holds other weights by now ({trained.fingerprint}, not {weights}); "
                "measure a checkpoint that is no longer trained, or a copy."
            )
        return trained
