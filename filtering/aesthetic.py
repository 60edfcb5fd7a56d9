"""LAION's aesthetic predictors: a score of about 1 to 10 from a CLIP ViT-L/14 embedding.

V2 (improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE) is five linear layers with dropout and without
any nonlinearity between them, V1 (aesthetic-predictor, sa_0_4_vit_l_14_linear) is one. So either is one
vector and one number, and the five are folded into that exactly, in float64, when the file is read.

    python -m filtering.aesthetic --head HEAD.pth --check GOLDEN.safetensors
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filtering.groups import check_free
from filtering.vectors import scored
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 2
WIDTH = 768  # of a CLIP ViT-L/14 image embedding
V2_LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # the numbers between are dropout
V2_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"  # the released V2 file
TOLERANCE = 1e-5  # of `--check`, on the score's own scale

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AestheticHead:
    """score = weight . (embedding / |embedding|) + bias"""

    name: str
    """laion-v1 or laion-v2, with the first eight digits of the file's hash."""
    sha256: str
    weight: Array
    bias: float

    def group(self, embeddings: str) -> str:
        """Name of the column group with the head's scores of a group of embeddings: other weights, precision or
        resizer give other scores, which may stand beside these."""
        return f"aesthetic.{self.name}.{embeddings.removeprefix('clip.')}"

    def score(self, embeddings: NDArray[Any]) -> Array:
        """Scores [N] of embeddings [N, 768], normalised here; a zero embedding stays zero.

        Raises ConfigurationError for embeddings of another width.
        """
        if embeddings.shape[1] != WIDTH:
            raise ConfigurationError(
                f"The head {self.name} reads embeddings of {WIDTH} numbers, CLIP ViT-L/14's; these have "
                f"{embeddings.shape[1]}."
            )
        vectors = embeddings.astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1)
        scores: Array = vectors @ self.weight / np.where(lengths == 0, 1.0, lengths) + self.bias
        return scores


def load_head(path: Path) -> AestheticHead:
    """Read a V1 or V2 head (.safetensors, or .pth of which only tensors are read).

    Raises:
        ConfigurationError: the file is absent, would run code when loaded, or holds another network, such as
            V2's sibling with nonlinearities, which cannot be folded.
    """
    tensors = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sha256 = file_sha256(path)
    if set(shapes) == {"weight", "bias"}:
        version, layers = "v1", [(tensors["weight"], tensors["bias"])]
    elif set(shapes) == {f"{layer}.{part}" for layer in V2_LAYERS for part in ("weight", "bias")}:
        version = "v2"
        layers = [(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in V2_LAYERS]
    else:
        raise ConfigurationError(f"{path} is neither of LAION's linear aesthetic heads; it holds {sorted(shapes)}.")
    try:
        weight, bias = _folded(layers)
    except ValueError:
        raise ConfigurationError(f"The layers of {path} do not fit together: {shapes}.") from None
    return AestheticHead(f"laion-{version}-{sha256[:8]}", sha256, weight, bias)


def _folded(layers: Sequence[tuple[Array, Array]]) -> tuple[Array, float]:
    """The one linear map [768] -> 1 that the layers make. ValueError where their shapes do not fit."""
    weight, bias = np.eye(WIDTH), np.zeros(WIDTH)
    for layer_weight, layer_bias in layers:
        weight, bias = layer_weight @ weight, layer_weight @ bias + layer_bias
    if weight.shape != (1, WIDTH) or bias.shape != (1,):
        raise ValueError(weight.shape)
    return weight[0], float(bias[0])


def read_tensors(path: Path) -> dict[str, Array]:
    """Tensors by name, as float64, from .safetensors or from a .pth that holds tensors alone."""
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}; name a head's weights.")
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        safe = path.suffix == ".safetensors"
        found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError) as problem:
        raise ConfigurationError(f"{path} holds something else than tensors and is not loaded.") from problem
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ConfigurationError(f"{path} holds something else than named tensors and is not loaded.")
    return {str(name): tensor.double().numpy() for name, tensor in found.items()}


def aesthetic_step(dataset: Dataset, head: AestheticHead, embeddings: str) -> Step:
    """The step that writes the column group `head.group(embeddings)` of `dataset` from the group `embeddings`."""
    configuration = {"head": head.sha256, "embeddings": embeddings}
    return Step("aesthetic", STEP_VERSION, configuration, (Reads(dataset, (embeddings,)),))


def score_aesthetics(
    dataset: Dataset, head: AestheticHead, embeddings: str, on_progress: ProgressCallback | None = None
) -> Commit:
    """Write the column group `head.group(embeddings)` from the embeddings in the group `embeddings`, and commit it.

    Raises ConfigurationError for embeddings of another width.
    """
    run = StepRun(dataset, aesthetic_step(dataset, head, embeddings), on_progress)
    if run.committed:
        return run.committed
    check_free(dataset, head.group(embeddings), run.step)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        table = dataset.table(embeddings, shard)
        output.columns(head.group(embeddings), scored(table, head.score))
        output.finish(table.num_rows)
    return run.commit()


def check(head: AestheticHead, golden: Path) -> float:
    """Largest absolute difference of the head's scores of `embeddings` from the `scores` beside them."""
    tensors = read_tensors(golden)
    try:
        embeddings, expected = tensors["embeddings"], tensors["scores"]
    except KeyError as missing:
        raise ConfigurationError(f"{golden} has no {missing}; it holds {sorted(tensors)}.") from None
    return float(np.abs(head.score(embeddings) - expected.reshape(-1)).max())


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 within the tolerance, 1 above it, 2 for files that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m filtering.aesthetic", description="Checks a head against scores.")
    parser.add_argument("--head", type=Path, required=True, help="weights of a V1 or V2 head")
    parser.add_argument("--check", type=Path, required=True, help="safetensors with `embeddings` and `scores`")
    chosen = parser.parse_args(arguments)
    try:
        head = load_head(chosen.head)
        error = check(head, chosen.check)
    except HarmonError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    pinned = " (the released V2 weights)" if head.sha256 == V2_SHA256 else ""
    print(f"{head.name}{pinned}: largest error {error:.3g}, tolerance {TOLERANCE:g}")
    return 0 if error <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
