"""Checkpoints of a training run: complete or invisible, and free of pickle.

    checkpoints/000500/model.safetensors        all weights under the released names
    checkpoints/000500/optimiser.safetensors    AdamW's moments, `<parameter>/<exp_avg|exp_avg_sq|step>`
    checkpoints/000500/state.json               step, training key, next sample of each task

A checkpoint is written under a temporary name, synced, and renamed, so a folder with a step's name is whole.
Random states are not stored: every draw is keyed (harmon.training.draws).
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.canonical import canonical_json
from pipelines.errors import HarmonError
from pipelines.settings import Settings

MODEL, OPTIMISER, STATE = "model.safetensors", "optimiser.safetensors", "state.json"


class TrainState(Settings):
    """Where a run stands: everything beside the tensors that going on needs."""

    step: int
    """Train steps done."""
    key: str
    """Training key of the run."""
    cursors: dict[str, int]
    """Each task's next sample number."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    trained: Mapping[str, nn.Parameter],
    state: TrainState,
) -> Path:
    """Write the checkpoint of `state.step` below `folder`; one that already stands is left alone."""
    final = folder / f"{state.step:06d}"
    if final.exists():
        return final
    attempt = folder / f".writing-{state.step:06d}-{os.getpid()}"
    shutil.rmtree(attempt, ignore_errors=True)
    attempt.mkdir(parents=True)
    save_file(_weights(model), attempt / MODEL)
    save_file(_moments(optimiser, trained), attempt / OPTIMISER)
    (attempt / STATE).write_bytes(canonical_json(state.model_dump()))
    for path in (*attempt.iterdir(), attempt):
        _sync(path)
    attempt.rename(final)
    _sync(folder)
    return final


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below `folder`, by step."""
    found = (path for path in folder.glob("*") if re.fullmatch(r"\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step below `folder`, or None."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def read_state(checkpoint: Path) -> TrainState:
    """The state of a checkpoint. Raises HarmonError where it is damaged."""
    try:
        return TrainState.model_validate(json.loads((checkpoint / STATE).read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise HarmonError(
            f"The checkpoint {checkpoint} is damaged ({error}); delete it to go on from the one before."
        ) from None


def load_checkpoint(
    checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]
) -> None:
    """Put a checkpoint's tensors into `model` and `optimiser`, whose parameters keep their memory."""
    load_weights(model, [checkpoint / MODEL])
    moments = _read(checkpoint / OPTIMISER)
    for name, parameter in trained.items():
        if f"{name}/step" in moments:
            optimiser.state[parameter] = {
                key: moments[f"{name}/{key}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }


def load_weights(model: nn.Module, files: list[Path]) -> None:
    """Load safetensors files into `model` under the released names.

    A name may lack its `llm.` or `mar.`, as in files of the language model or of MAR alone. A module (llm, mar,
    proj_in, proj_out) that no file speaks of keeps its weights: the paper's connectors start fresh.

    Raises:
        HarmonError: a name or shape the model does not have, or a module that is only partly there.
    """
    names = set(model.state_dict())
    given: dict[str, Tensor] = {}
    for file in files:
        for name, value in _read(file).items():
            given[next((full for full in (name, f"llm.{name}", f"mar.{name}") if full in names), name)] = value
    own = _weights(model)
    given = {name: value for name, value in given.items() if name in own or name not in names}
    modules = {name.split(".")[0] for name in given}
    wrong = [name for name in given if name not in own or own[name].shape != given[name].shape]
    absent = [name for name in own if name.split(".")[0] in modules and name not in given]
    if wrong or absent:
        raise HarmonError(
            f"The weights {', '.join(map(str, files))} do not fit the model: "
            f"{len(wrong)} names or shapes it lacks {wrong[:3]}, {len(absent)} it misses {absent[:3]}."
        )
    model.load_state_dict(given, strict=False)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and whatever unfinished attempts lie beside them."""
    for path in (*complete_checkpoints(folder)[:-keep], *folder.glob(".writing-*")):
        shutil.rmtree(path)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the names that share another's memory (the tied language model head)."""
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            weights[name] = value.detach().cpu().contiguous()
            seen.add(value.data_ptr())
    return weights


def _moments(optimiser: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in trained.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HarmonError(f"The weights {path} cannot be read ({error}); name a safetensors file.") from None
    return tensors


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
