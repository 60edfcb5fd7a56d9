"""Checkpoints of every form as a model ready for use, and the run folder, which is one of the forms.

    RUN/model/model.json               the model's sizes, and the stages in the order they were trained
    RUN/model/tokenizer.json           the tokenizer's file
    RUN/model/autoencoder.safetensors  the frozen autoencoder
    RUN/train/<stage>-<key8>/          what `harmon.training.loop` writes: checkpoints, metrics

The folder needs nothing outside itself, so it can be moved or copied.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers.initialization import no_init_weights

from harmon.convert.autoencoders import Autoencoder, PatchSizes, empty_autoencoder
from harmon.convert.contents import EMBEDDING, HEAD, Contents, read_tensors, without_tied_head
from harmon.convert.folder import is_folder, open_folder
from harmon.convert.released import Named, open_released
from harmon.latents import load_autoencoder
from harmon.model.autoencoder import KlAutoencoder
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.text import ChatText
from harmon.training.checkpoint import AVERAGE, MODEL, latest_checkpoint
from pipelines.errors import ConfigurationError, HarmonError
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
    autoencoder: Autoencoder
    px: int
    """Side of the pictures that the newest stage trained on; of released weights, that the release draws."""
    sampling: Mapping[str, Any]
    """As RunDescription's."""
    weights: tuple[Path, ...]
    """The weight files that were loaded."""
    stage: str
    """A run's newest trained stage, and below its train steps; empty and 0 for other checkpoints."""
    step: int
    fingerprint: str
    """Of the weights (Contents.fingerprint)."""

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


def description_of(run: Path) -> RunDescription:
    """What `run` says of itself.

    Raises:
        ConfigurationError: `run` is no run folder, or model.json is not of the form that runs write.
        HarmonError: model.json is damaged.
    """
    file = run / "model" / DESCRIPTION
    if not file.is_file():
        raise ConfigurationError(f"{run} is no run folder: it has no model/{DESCRIPTION}; name one that a run wrote.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarmonError(f"{file} cannot be read ({error}); run the last stage again, which writes it.") from None
    return parse(RunDescription, values, str(file))


def newest_checkpoint(run: Path) -> tuple[RunDescription, TrainedStage, Path]:
    """What `run` says of itself, and the newest complete checkpoint of the last stage that has one.

    Raises:
        ConfigurationError: `run` is no run folder, or holds no complete checkpoint.
    """
    described = description_of(run)
    for stage in reversed(described.stages):
        checkpoint = latest_checkpoint(run / "train" / stage.folder / "checkpoints")
        if checkpoint is not None:
            return described, stage, checkpoint
    raise ConfigurationError(f"{run} holds no complete checkpoint yet; train at least one stage.")


def open_checkpoint(checkpoint: Path, named: Named | None = None) -> Contents:
    """What CHECKPOINT holds (DESIGN section 3), whatever its form, with the tensors still on disk.

    A Hugging Face folder that `harmon convert` wrote; released files: the .pth file, or a folder that holds
    one and kl16.ckpt; or a run folder: its newest complete checkpoint. `named` says what the released files
    lack, and whether it is the averaged weights of a run folder that are meant.

    Raises:
        ConfigurationError: `checkpoint` is none of these, or something it needs is absent.
        HarmonError: it is damaged, or holds other weights than its sizes say.
    """
    named = named or Named()
    if checkpoint.is_file() and not named.average:
        return open_released(checkpoint, named)
    if (checkpoint / "model" / DESCRIPTION).is_file():
        return open_run(checkpoint, named.average)
    if named.average:
        raise ConfigurationError(f"{checkpoint} is no run folder, and only those keep an average beside the weights.")
    if is_folder(checkpoint):
        return open_folder(checkpoint)
    released = sorted(checkpoint.glob("*.pth"))
    if len(released) == 1:
        return open_released(released[0], named)
    if released:
        raise ConfigurationError(f"{checkpoint} holds {len(released)} .pth files; name one of them.")
    raise ConfigurationError(
        f"{checkpoint} is no checkpoint: name a run folder, a Hugging Face folder that `harmon convert` wrote, or "
        "a released .pth file."
    )


def open_run(run: Path, average: bool = False) -> Contents:
    """The newest complete checkpoint of the run folder `run`: its weights, or their `average`.

    Raises:
        ConfigurationError: `run` is no run folder, holds no complete checkpoint, or kept no average.
        HarmonError: its weights are damaged or do not fit.
    """
    _, stage, checkpoint = newest_checkpoint(run)
    return open_run_at(run, stage, checkpoint, average)


def weights_of(checkpoint: Path, average: bool = False) -> Path:
    """The file of a checkpoint's weights, or of their average. Raises ConfigurationError where it kept none."""
    weights = checkpoint / (AVERAGE if average else MODEL)
    if average and not weights.is_file():
        raise ConfigurationError(
            f"The checkpoint {checkpoint} has no average of its weights: the recipe's training.average was not set; "
            "ask for the weights themselves."
        )
    return weights


def open_run_at(run: Path, stage: TrainedStage, checkpoint: Path, average: bool = False) -> Contents:
    """One complete checkpoint of `stage` of the run folder `run`; raises as `open_run`."""
    described = description_of(run)
    folder, weights = run / "model", weights_of(checkpoint, average)
    autoencoder = load_autoencoder(folder / AUTOENCODER)
    sizes = (
        autoencoder.config
        if isinstance(autoencoder, KlAutoencoder)
        else PatchSizes(latent_channels=autoencoder.channels, stride=autoencoder.stride)
    )
    return Contents(
        config=described.model,
        tensors=without_tied_head(read_tensors(weights), described.model, weights),
        autoencoder=sizes,
        autoencoder_tensors=autoencoder.state_dict(),
        tokenizer=folder / TOKENIZER,
        px=stage.px,
        sampling=described.sampling,
        weights=(weights,),
        stage=stage.folder,
        step=int(checkpoint.name),
    ).checked(run)


def load(
    checkpoint: Path, named: Named | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Trained:
    """The model of `open_checkpoint`, ready for use. Its weights become `dtype`; the autoencoder is float32.

    Raises:
        ConfigurationError: as `open_checkpoint`, or there is no tokenizer or no such device.
        HarmonError: as `open_checkpoint`.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise ConfigurationError(f"There is no device {device!r} here ({first}); name another with --device.") from None
    return made_ready(open_checkpoint(checkpoint, named), device, dtype)


def made_ready(contents: Contents, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Trained:
    """The model of an opened checkpoint. Raises ConfigurationError where it has no tokenizer."""
    tokenizer = contents.named_tokenizer()
    with no_init_weights():  # every weight is loaded: drawing random ones first would take seconds
        model = Harmon(contents.config)
        autoencoder = empty_autoencoder(contents.autoencoder)
    model.llm.tie_weights()  # which no_init_weights leaves out too
    model.to(dtype)
    tied = {HEAD: contents.tensors[EMBEDDING]} if contents.config.llm.tie_word_embeddings else {}
    model.load_state_dict({**contents.tensors, **tied})
    autoencoder.load_state_dict(dict(contents.autoencoder_tensors))
    return Trained(
        model=model.to(device).eval(),
        text=ChatText(tokenizer.parent),
        autoencoder=autoencoder.to(device).eval().requires_grad_(False),
        px=contents.px,
        sampling=contents.sampling,
        weights=contents.weights,
        stage=contents.stage,
        step=contents.step,
        fingerprint=contents.fingerprint(),
    )
