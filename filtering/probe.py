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
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.identity import NAME
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 1
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """A multilayer perceptron from a normalised embedding to one number."""

    name: str
    sha256: str
    layers: tuple[tuple[Array, Array], ...]
    relu: bool
    sigmoid: bool

    @property
    def group(self) -> str:
        """Name of the column group that its scores are kept in."""
        return f"{self.name}.{self.sha256[:8]}"

    def score(self, embeddings: NDArray[Any]) -> Array:
        """Scores [N] of embeddings [N, D], normalised here."""
        values = embeddings.astype(np.float32)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        values = np.divide(values, np.where(lengths == 0, 1, lengths), dtype=np.float32)
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


def score_probe(dataset: Dataset, probe: Probe, embeddings: str, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `probe.group` (score) from the embeddings in the group `embeddings`, and commit it."""
    told = {"probe": probe.sha256, "embeddings": embeddings}
    run = StepRun(dataset, Step("probe", STEP_VERSION, told, (Reads(dataset, (embeddings,)),)), on_progress)
    if run.committed:
        return run.committed
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        table = dataset.table(embeddings, shard)
        vectors = table.column("embedding").to_pylist()
        present = [vector for vector in vectors if vector is not None]
        scores = iter(probe.score(np.array(present)).tolist() if present else ())
        values = pa.array([None if vector is None else next(scores) for vector in vectors], pa.float32())
        columns = {name: table.column(name) for name in ("key", "status", "reason")}
        output.columns(probe.group, pa.table({"key": columns.pop("key"), "score": values, **columns}))
        output.finish(table.num_rows)
    return run.commit()
