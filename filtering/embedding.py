"""CLIP embeddings: computed once, kept as a column, and read by every head (aesthetic, text similarity, NSFW, …).

Used only where the weights are present as a file: `python -m filtering.weights` fetches those that are pinned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from filtering.feed import Batch, batches
from filtering.groups import check_free
from filtering.preprocess import DEVIATION, MEAN, Resizer, normalised, pixels
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.storage import file_sha256

STEP_VERSION = 3
ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's CLIP ViT-L/14 was trained with QuickGELU
EMBED = "embed"
BATCH = 64  # part of the result in its last bits, so it is fixed here and not a setting
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Clip:
    """A CLIP model by its file, not loaded: enough to name its column group and its step."""

    weights: Path
    """A state dict (.safetensors, or .pt read without unpickling code) of the whole model."""
    architecture: str = ARCHITECTURE
    """open_clip's name of the network, or a JSON file that describes another one as open_clip's own files do."""
    precision: Precision = "float32"
    """In which the network is computed. Scores near a threshold differ between the two (DATASETS.md, d)."""
    resizer: Resizer = "pillow"
    """How pictures are made smaller (filtering.preprocess): exactly as open_clip does, or faster."""

    @property
    def group(self) -> str:
        """Name of the column group that its embeddings are kept in, with the first digits of the weights' hash: those
        of other weights stand beside them. Raises ConfigurationError where the weights are absent."""
        fast = "" if self.resizer == "pillow" else f"-{self.resizer}"
        return f"clip.{self.name.lower()}-{self.sha256[:8]}-{self.precision}{fast}"

    @property
    def name(self) -> str:
        """What open_clip calls the network."""
        return Path(self.architecture).stem if self.architecture.endswith(".json") else self.architecture

    @cached_property
    def sha256(self) -> str:
        """Of the weights file. Raises ConfigurationError where there is none."""
        if not self.weights.is_file():
            raise ConfigurationError(f"The CLIP weights {self.weights} are absent; name a file of {self.architecture}.")
        return file_sha256(self.weights)


@dataclass(frozen=True)
class Pool:
    """Where embeddings are computed. It decides no value."""

    device: str = "cpu"
    threads: int = 1
    """That decode for one model; a GPU that reads 400 pictures/s needs about one, with the `torch` resizer."""
    actors: tuple[int, int] | None = None
    """Fewest and most Ray Data actors, one model each, between which the pool scales itself; None: this process."""
    gpus: float = 0.0
    """Of each actor."""


class ClipEmbedder:
    """Turns pictures into L2-normalised float32 embeddings, with open_clip's own preprocessing."""

    def __init__(self, clip: Clip, device: str = "cpu") -> None:
        """Load `clip`.

        Raises:
            ConfigurationError: the file is absent or does not fit the architecture, or the network wants another
                preprocessing than CLIP's.
        """
        if not clip.weights.is_file():
            raise ConfigurationError(f"The CLIP weights {clip.weights} are absent; name a file of {clip.architecture}.")
        import open_clip
        import torch

        if clip.architecture.endswith(".json"):
            open_clip.add_model_config(Path(clip.architecture))
        try:
            model = open_clip.create_model(clip.name, pretrained=str(clip.weights), weights_only=True)
        except RuntimeError as problem:
            first = str(problem).splitlines()[0]
            raise ConfigurationError(
                f"{clip.weights} does not hold the weights of {clip.architecture}: {first}"
            ) from problem
        told = model.visual.preprocess_cfg
        ours = {"mean": MEAN, "std": DEVIATION, "interpolation": "bicubic", "resize_mode": "shortest"}
        if other := [name for name, value in ours.items() if told[name] != value]:
            raise ConfigurationError(f"{clip.architecture} is preprocessed otherwise than CLIP ({', '.join(other)}).")
        size = told["size"]
        self._clip = clip
        self._device = torch.device(device)
        self._dtype = getattr(torch, clip.precision)
        self._model: Any = model.eval().to(self._device)
        self.side: int = size if isinstance(size, int) else size[0]
        self._tokenizer: Any = open_clip.get_tokenizer(clip.name)

    def pixels(self, data: bytes) -> NDArray[np.uint8]:
        """A picture as the network reads it, [side, side, 3]. Raises Undecodable for what is none."""
        return pixels(data, self.side, self._clip.resizer)

    def embed(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings [B, D] of pictures [B, side, side, 3], each of length 1."""
        import torch

        batch = normalised(torch.from_numpy(pictures).to(self._device, non_blocking=True))
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            found = self._model.encode_image(batch)
        return self._unit(found)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings [B, D] of texts, each of length 1; what is longer than the context is cut off."""
        import torch

        tokens = self._tokenizer(list(texts)).to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            found = self._model.encode_text(tokens)
        return self._unit(found)

    def _unit(self, vectors: Any) -> NDArray[np.float32]:
        import torch

        found: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        return found


def embed_step(dataset: Dataset, clip: Clip) -> Step:
    """The step that writes the column group `clip.group` of `dataset`."""
    configuration = {"weights": clip.sha256, "group": clip.group, "dtype": clip.precision, "resizer": clip.resizer}
    groups = (SOURCE, IMAGES) if dataset.entries(IMAGES) else (SOURCE,)
    return Step(EMBED, STEP_VERSION, configuration, (Reads(dataset, groups),))


def embed_images(
    dataset: Dataset, clip: Clip, on_progress: ProgressCallback | None = None, pool: Pool = Pool()
) -> Commit:
    """Write the column group `clip.group` (embedding: fp16[D]) and commit it.

    Rows without an image are failed with the reason `no_image`, undecodable ones with `undecodable`. With actors, Ray
    has to run already or RAY_ADDRESS to name a cluster, and every node has to reach dataset and weights.

    Raises:
        ConfigurationError: the weights are absent or do not fit the architecture.
    """
    run = StepRun(dataset, embed_step(dataset, clip), on_progress)
    if run.committed:
        return run.committed
    check_free(dataset, clip.group, run.step)
    pending = run.pending(dataset.shard_numbers)
    if pool.actors is None:
        worker = EmbedShards(dataset.root, clip, pool, run)
        for shard in pending:
            worker.write(shard)
    elif pending:
        _with_actors(run, pending, clip, pool, on_progress)
    return run.commit()


class EmbedShards:
    """One model and its decoding threads, which embeds whole shards: in this process, or as a Ray Data actor."""

    def __init__(self, root: Any, clip: Clip, pool: Pool, run: StepRun | None = None) -> None:
        self._dataset = run.dataset if run else Dataset(root)
        self._run = run or StepRun(self._dataset, embed_step(self._dataset, clip))
        self._embedder = ClipEmbedder(clip, pool.device)
        self._clip, self._pool = clip, pool

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """For Ray Data: rows with the number of a shard each, which goes through."""
        for shard in batch["shard"].tolist():
            self.write(shard)
        return batch

    def write(self, shard: int) -> None:
        """The column of one shard, and its receipt."""
        output = self._run.shard(shard)
        keys = self._dataset.table(SOURCE, shard, ["key"]).column("key").to_pylist()
        found: dict[str, NDArray[np.float16]] = {}
        undecodable: set[str] = set()
        for batch in self._batches(shard, keys):
            undecodable.update(batch.undecodable)
            if batch.keys:
                found.update(zip(batch.keys, self._embedder.embed(batch.pixels).astype(np.float16), strict=True))
        output.columns(self._clip.group, _table(keys, found, undecodable))
        output.finish(len(keys))

    def _batches(self, shard: int, keys: Sequence[str]) -> Iterator[Batch]:
        if self._dataset.entry(IMAGES, shard) is None:
            return
        images = self._dataset.images(shard)
        pictures = ((key, image.data) for key in keys if (image := images.find(key)))
        yield from batches(pictures, self._embedder.pixels, BATCH, self._pool.threads)
        images.close()


def _with_actors(
    run: StepRun, pending: Sequence[int], clip: Clip, pool: Pool, on_progress: ProgressCallback | None
) -> None:
    """Embed the pending shards with a pool of Ray Data actors; a row of its dataset is the number of a shard."""
    import ray

    assert pool.actors is not None
    fewest, most = pool.actors
    rows = ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending))
    done = rows.map_batches(
        EmbedShards,
        fn_constructor_args=(run.dataset.root, clip, pool),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most),
        num_cpus=pool.threads,
        num_gpus=pool.gpus or None,
    )
    for _ in done.iter_rows():
        if on_progress is not None:
            on_progress(run.progress())


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
