"""CLIP image embeddings: what the aesthetic head, and any later head over the same space, reads.

Used only where the weights are present as a file: nothing is fetched.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 1
ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's CLIP ViT-L/14 was trained with QuickGELU
BATCH = 16


class ClipEmbedder:
    """Turns pictures into L2-normalised float32 embeddings, with open_clip's own preprocessing."""

    def __init__(self, weights: Path, architecture: str = ARCHITECTURE) -> None:
        """`weights`: a state dict (.safetensors, or .pt read without unpickling code) of the whole CLIP
        model.

        Raises:
            ConfigurationError: the file is absent or does not fit the architecture.
        """
        if not weights.is_file():
            raise ConfigurationError(f"The CLIP weights {weights} are absent; name a file of {architecture}.")
        import open_clip

        try:
            model, _, self._preprocess = open_clip.create_model_and_transforms(
                architecture, pretrained=str(weights), weights_only=True
            )
        except RuntimeError as problem:
            first = str(problem).splitlines()[0]
            raise ConfigurationError(f"{weights} does not hold the weights of {architecture}: {first}") from problem
        self._model: Any = model.eval()
        self.sha256 = file_sha256(weights)
        self.group = f"clip.{architecture.lower()}-float32"

    def embed(self, pictures: Sequence[bytes]) -> NDArray[np.float32]:
        """Embeddings [B, D] of encoded pictures, each of length 1."""
        import torch

        batch = torch.stack([self._preprocess(Image.open(io.BytesIO(data))) for data in pictures])
        with torch.inference_mode():
            found: NDArray[np.float32] = self._model.encode_image(batch, normalize=True).float().numpy()
        return found


def embed_images(dataset: Dataset, embedder: ClipEmbedder, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `embedder.group` (embedding: fp16[D], null without an image) and commit it."""
    configuration = {"weights": embedder.sha256, "group": embedder.group, "dtype": "float32"}
    step = Step("embed", STEP_VERSION, configuration, (Reads(dataset, (SOURCE, IMAGES)),))
    run = StepRun(dataset, step, on_progress)
    if run.committed:
        return run.committed
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        keys = dataset.table(SOURCE, shard, ["key"]).column("key").to_pylist()
        found = dict(_embedded(dataset, shard, keys, embedder))
        output.columns(embedder.group, _table(keys, found))
        output.finish(len(keys))
    return run.commit()


def _embedded(
    dataset: Dataset, shard: int, keys: Sequence[str], embedder: ClipEmbedder
) -> Iterator[tuple[str, NDArray[np.float16]]]:
    if dataset.entry(IMAGES, shard) is None:
        return
    images = dataset.images(shard)
    members = [key for key in keys if images.find(key)]
    for start in range(0, len(members), BATCH):
        batch = members[start : start + BATCH]
        pictures = [image.data for key in batch if (image := images.find(key))]
        yield from zip(batch, embedder.embed(pictures).astype(np.float16), strict=True)


def _table(keys: Sequence[str], found: dict[str, NDArray[np.float16]]) -> pa.Table:
    reasons = [None if key in found else "no_image" for key in keys]
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "embedding": pa.array([found.get(key) for key in keys], pa.list_(pa.float16())),
            "status": pa.array(["failed" if reason else "ok" for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
