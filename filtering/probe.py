"""Small networks over stored CLIP embeddings: NSFW, watermark, and whatever else is trained on them.

A probe is a .safetensors file of our own layout, since the published ones come as Keras folders or pickles: tensors
`layers.0.weight` [out, in], `layers.0.bias`, `layers.1.weight`, … and in the file's metadata `name` (nsfw, watermark),
`activation` between the layers (relu, none) and `output` (sigmoid, none). Nothing in it runs.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filtering.groups import check_free
from filtering.vectors import scored, unit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.identity import NAME
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 2
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """A multilayer perceptron from a normalised embedding to one number."""

    name: str
    sha256: str
    layers: tuple[tuple[Array, Array], ...]
    relu: bool
    sigmoid: bool

    def group(self, embeddings: str) -> str:
        """Name of the column group with its scores of a group of embeddings."""
        return f"{self.name}.{self.sha256[:8]}.{embeddings.removeprefix('clip.')}"

    def score(self, embeddings: NDArray[Any]) -> Array:
        """Scores [N] of embeddings [N, D], normalised here.

        Raises ConfigurationError for embeddings of another width.
        """
        if embeddings.shape[1] != (width := self.layers[0][0].shape[1]):
            raise ConfigurationError(
                f"The probe {self.name} reads embeddings of {width} numbers; these have {embeddings.shape[1]}."
            )
        values = unit(embeddings)
        for number, (weight, bias) in enumerate(self.layers):
            values = values @ weight.T + bias
            if self.relu and number + 1 < len(self.layers):
                values = np.maximum(values, 0)
        found: Array = values[:, 0]
        return np.divide(1, 1 + np.exp(-found), dtype=np.float32) if self.sigmoid else found


def load_probe(path: Path) -> Probe:
    """The probe in a file.

    Raises:
        ConfigurationError: the file is absent or not of this layout.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConfigurationError(f"There is no probe {path}; name a .safetensors file.")
    try:
        with safe_open(path, "numpy") as file:
            told, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise ConfigurationError(f"{path} is no .safetensors file: {problem}.") from problem
    name, activation, output = (told.get(one, "") for one in ("name", "activation", "output"))
    depth = len(tensors) // 2
    expected = {f"layers.{layer}.{part}" for layer in range(depth) for part in ("weight", "bias")}
    if not NAME.fullmatch(name) or activation not in ("relu", "none") or output not in ("sigmoid", "none"):
        raise ConfigurationError(
            f"{path} says {told}; name, activation (relu, none) and output (sigmoid, none) are due."
        )
    if not depth or set(tensors) != expected:
        raise ConfigurationError(f"{path} holds {sorted(tensors)}; layers.0.weight, layers.0.bias and so on are due.")
    layers = tuple(
        (tensors[f"layers.{n}.weight"].astype(np.float32), tensors[f"layers.{n}.bias"].astype(np.float32))
        for n in range(depth)
    )
    widths = [weight.shape for weight, _ in layers if weight.ndim == 2]
    fits = len(widths) == depth and widths[-1][0] == 1 and all(a[0] == b[1] for a, b in pairwise(widths))
    if not fits or any(bias.shape != (weight.shape[0],) for weight, bias in layers):
        raise ConfigurationError(f"The layers of {path} do not fit together: {widths}.")
    return Probe(name, file_sha256(path), layers, activation == "relu", output == "sigmoid")


def probe_step(dataset: Dataset, probe: Probe, embeddings: str) -> Step:
    """The step that writes the column group `probe.group(embeddings)` of `dataset` from the group `embeddings`."""
    told = {"probe": probe.sha256, "embeddings": embeddings}
    return Step("probe", STEP_VERSION, told, (Reads(dataset, (embeddings,)),))


def score_probe(dataset: Dataset, probe: Probe, embeddings: str, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `probe.group(embeddings)` (score) from the embeddings in a group, and commit it.

    Raises ConfigurationError for embeddings of another width.
    """
    run = StepRun(dataset, probe_step(dataset, probe, embeddings), on_progress)
    if run.committed:
        return run.committed
    check_free(dataset, probe.group(embeddings), run.step)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        table = dataset.table(embeddings, shard)
        output.columns(probe.group(embeddings), scored(table, probe.score))
        output.finish(table.num_rows)
    return run.commit()
