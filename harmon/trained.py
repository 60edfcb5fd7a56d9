"""A run folder as a checkpoint: what a trained model needs beside its weights, and how to load it.

    RUN/model/model.json               the model's sizes, and the stages in the order they were trained
    RUN/model/tokenizer.json           the tokenizer's file
    RUN/model/autoencoder.safetensors  the frozen autoencoder
    RUN/train/<stage>-<key8>/          what `harmon.training.loop` writes: checkpoints, metrics

The folder needs nothing outside itself, so it can be moved or copied.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from harmon.latents import load_autoencoder
from harmon.model.autoencoder import KlAutoencoder
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.model.patch_latent import PatchLatent
from harmon.text import ChatText
from harmon.training.checkpoint import MODEL, latest_checkpoint, load_weights
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, parse

DESCRIPTION, TOKENIZER, AUTOENCODER = "model.json", "tokenizer.json", "autoencoder.safetensors"


class TrainedStage(Settings):
    """One stage of a run."""

    folder: str
    """Its folder's name below RUN/train."""
    px: int
    """Side of its pictures, in pixels."""


class RunDescription(Settings):
    """model.json."""

    model: HarmonConfig
    stages: tuple[TrainedStage, ...]
    sampling: Mapping[str, Any] = Field(default_factory=dict)
    """How its pictures are drawn, as harmon.sampling_config.SamplingConfig; empty: as the paper draws them."""


@dataclass(frozen=True)
class Trained:
    """A model ready to draw and to answer, in evaluation mode."""

    model: Harmon
    text: ChatText
    autoencoder: KlAutoencoder | PatchLatent
    px: int
    """Side of the pictures that the newest stage trained on."""
    sampling: Mapping[str, Any]
    """As RunDescription's."""
    weights: Path
    """The weights file that was loaded."""
    stage: str
    step: int

    def slots(self, px: int) -> int:
        """Image slots of a question prompt about a picture of `px` pixels a side."""
        side = px // self.autoencoder.stride
        return self.model.config.tokens(side, side) + self.model.config.mar.buffer_size


def describe_run(run: Path, described: RunDescription, tokenizer: Path, autoencoder: Path) -> None:
    """Write RUN/model, replacing another description. `tokenizer` is a Hugging Face folder."""
    folder = run / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (TOKENIZER, (tokenizer / TOKENIZER).read_bytes()),
        (AUTOENCODER, autoencoder.read_bytes()),
        (DESCRIPTION, _text(described).encode()),
    ):
        part = folder / f".{name}.part"
        part.write_bytes(data)
        part.replace(folder / name)


def is_described(run: Path, described: RunDescription) -> bool:
    """Whether RUN/model says just this."""
    file = run / "model" / DESCRIPTION
    return file.is_file() and file.read_text() == _text(described)


def _text(described: RunDescription) -> str:
    return described.model_dump_json(indent=2) + "\n"


def newest_checkpoint(run: Path) -> tuple[RunDescription, TrainedStage, Path]:
    """What `run` says of itself, and the newest complete checkpoint of the last stage that has one.

    Raises:
        ConfigurationError: `run` is no run folder, or holds no complete checkpoint.
    """
    file = run / "model" / DESCRIPTION
    if not file.is_file():
        raise ConfigurationError(f"{run} is no run folder: it has no model/{DESCRIPTION}; name one that a run wrote.")
    described = parse(RunDescription, json.loads(file.read_text()), str(file))
    for stage in reversed(described.stages):
        checkpoint = latest_checkpoint(run / "train" / stage.folder / "checkpoints")
        if checkpoint is not None:
            return described, stage, checkpoint
    raise ConfigurationError(f"{run} holds no complete checkpoint yet; train at least one stage.")


def load_run(run: Path, device: str = "cpu") -> Trained:
    """The model of `newest_checkpoint`, ready for use.

    Raises:
        ConfigurationError: `run` is no run folder, or holds no complete checkpoint.
        HarmonError: its weights are damaged or do not fit.
    """
    described, stage, checkpoint = newest_checkpoint(run)
    folder = run / "model"
    model = Harmon(described.model)
    load_weights(model, [checkpoint / MODEL])
    model.to(device).eval()
    return Trained(
        model=model,
        text=ChatText(folder),
        autoencoder=load_autoencoder(folder / AUTOENCODER).to(device).eval(),
        px=stage.px,
        sampling=described.sampling,
        weights=checkpoint / MODEL,
        stage=stage.folder,
        step=int(checkpoint.name),
    )


def padded(prompts: Sequence[Sequence[int]], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as right-padded ids [B, L] int64 and the mask [B, L] bool of real tokens."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[*prompt, *[fill] * (length - len(prompt))] for prompt in prompts], dtype=torch.int64)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids.to(device), (torch.arange(length) < lengths[:, None]).to(device)
