"""Weights as plain safetensors files under the released names: what training starts from and what others read."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from harmon.training.failure import FinalError
from pipelines.errors import HarmonError


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
    own = own_tensors(model)
    given = {name: value for name, value in given.items() if name in own or name not in names}
    modules = {name.split(".")[0] for name in given}
    wrong = [name for name in given if name not in own or own[name].shape != given[name].shape]
    absent = [name for name in own if name.split(".")[0] in modules and name not in given]
    if wrong or absent:
        raise FinalError(
            f"The weights {', '.join(map(str, files))} do not fit the model: "
            f"{len(wrong)} names or shapes it lacks {wrong[:3]}, {len(absent)} it misses {absent[:3]}."
        )
    model.load_state_dict(given, strict=False)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, each once: the tied language model head is not told again."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def whole(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Copies of the tensors on the CPU, sharded ones put together, which takes all workers; only where `keep`."""
    copies = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            copies[name] = value.detach().to("cpu", copy=True).contiguous()
    return copies


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HarmonError(f"The weights {path} cannot be read ({error}); name a safetensors file.") from None
    return tensors
