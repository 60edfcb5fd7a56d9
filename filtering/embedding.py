"""CLIP image embeddings: what the aesthetic head, and any later head over the same space, reads.

Used only where the weights are present as a file: nothing is fetched.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Clip:
    """A CLIP model by its file, not loaded: enough to name its column group and its step."""

    weights: Path
    """A state dict (.safetensors, or .pt read without unpickling code) of the whole model."""
    architecture: str = ARCHITECTURE
    """open_clip's name of the network."""

    @property
    def group(self) -> str:
        """Name of the column group that its embeddings are kept in."""
        return f"clip.{self.architecture.lower()}-float32"

    @cached_property
    def sha256(self) -> str:
        """Of the weights file. Raises ConfigurationError where there is none."""
        if not self.weights.is_file():
            raise ConfigurationError(f"The CLIP weights {self.weights} are absent; name a file of {self.architecture}.")
        return file_sha256(self.weights)


class ClipEmbedder:
    """Turns pictures into L2-normalised float32 embeddings, with open_clip's own preprocessing."""

    def __init__(self, clip: Clip) -> None:
        """Load `clip`.

        Raises:
            ConfigurationError: the file is absent or does not fit the architecture.
        """
        if not clip.weights.is_file():
            raise ConfigurationError(f"The CLIP weights {clip.weights} are absent; name a file of {clip.architecture}.")
        import open_clip

        try:
            model, _, self._preprocess = open_clip.create_model_and_transforms(
                clip.architecture, pretrained=str(clip.weights), weights_only=True
            )
        except RuntimeError as problem:
            first = str(problem).splitlines()[0]
            raise ConfigurationError(
                f"{clip.weights} does not hold the weights of {clip.architecture}: {first}"
            ) from problem
        self._model: Any = model.eval()

    def embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeddings [B, D] of pictures, each of length 1."""
        import torch

        batch = torch.stack([self._preprocess(picture) for picture in pictures])
        with torch.inference_mode():
            found: NDArray[np.float32] = self._model.encode_image(batch, normalize=True).float().numpy()
        return found


def decoded(data: bytes) -> Image.Image:
    """An encoded picture as RGB. Raises OSError or ValueError for what is none."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def embed_step(dataset: Dataset, clip: Clip) -> Step:
    """The step that writes the column group `clip.group` of `dataset`."""
    configuration = {"weights": clip.sha256, "group": clip.group, "dtype": "float32"}
    groups = (SOURCE, IMAGES) if dataset.entries(IMAGES) else (SOURCE,)
    return Step("embed", STEP_VERSION, configuration, (Reads(dataset, groups),))


def embed_images(dataset: Dataset, clip: Clip, on_progress: ProgressCallback | None = None) -> Commit:
    """Write the column group `clip.group` (embedding: fp16[D]) and commit it.

    Rows without an image are failed with the reason `no_image`, undecodable ones with `undecodable`.

    Raises:
        ConfigurationError: the weights are absent or do not fit the architecture.
    """
    run = StepRun(dataset, embed_step(dataset, clip), on_progress)
    if run.committed:
        return run.committed
    embedder = ClipEmbedder(clip)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        keys = dataset.table(SOURCE, shard, ["key"]).column("key").to_pylist()
        output.columns(clip.group, _table(keys, *_embedded(dataset, shard, keys, embedder)))
        output.finish(len(keys))
    return run.commit()


def _embedded(
    dataset: Dataset, shard: int, keys: Sequence[str], embedder: ClipEmbedder
) -> tuple[dict[str, NDArray[np.float16]], set[str]]:
    """Embeddings by key, and the keys of pictures that cannot be decoded."""
    found: dict[str, NDArray[np.float16]] = {}
    undecodable: set[str] = set()
    for batch in _batches(dataset, shard, keys):
        pictures = {}
        for key, data in batch:
            try:
                pictures[key] = decoded(data)
            except (OSError, ValueError, Image.DecompressionBombError):
                undecodable.add(key)
        if pictures:
            vectors = embedder.embed(list(pictures.values())).astype(np.float16)
            found.update(zip(pictures, vectors, strict=True))
    return found, undecodable


def _batches(dataset: Dataset, shard: int, keys: Sequence[str]) -> Iterator[list[tuple[str, bytes]]]:
    """Keys and encoded pictures of the rows that have one, BATCH at a time."""
    if dataset.entry(IMAGES, shard) is None:
        return
    images = dataset.images(shard)
    with_image = [key for key in keys if images.find(key)]
    for start in range(0, len(with_image), BATCH):
        yield [(key, image.data) for key in with_image[start : start + BATCH] if (image := images.find(key))]


def _table(keys: Sequence[str], found: dict[str, NDArray[np.float16]], undecodable: set[str]) -> pa.Table:
    reasons = [None if key in found else "undecodable" if key in undecodable else "no_image" for key in keys]
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "embedding": pa.array([found.get(key) for key in keys], pa.list_(pa.float16())),
            "status": pa.array(["failed" if reason else "ok" for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
