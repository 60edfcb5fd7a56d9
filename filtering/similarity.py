"""How well a caption fits its picture: the cosine of their CLIP embeddings, from the stored picture embeddings."""

import numpy as np
import pyarrow as pa

from filtering.embedding import BATCH, Clip, ClipEmbedder
from filtering.groups import check_free
from filtering.vectors import stored, unit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

STEP_VERSION = 2


def similarity_group(captions: str, embeddings: str) -> str:
    """The column group with the similarities of a caption group, `source` or a caption version, to embeddings."""
    return f"similarity.{captions}.{embeddings.removeprefix('clip.')}"


def similarity_step(dataset: Dataset, clip: Clip, captions: str = SOURCE) -> Step:
    """The step that writes the group `similarity_group(captions, clip.group)`."""
    told = {"weights": clip.sha256, "embeddings": clip.group, "captions": captions}
    reads = Reads(dataset, tuple(dict.fromkeys((SOURCE, clip.group, captions))))
    return Step("similarity", STEP_VERSION, told, (reads,))


def score_similarity(
    dataset: Dataset,
    clip: Clip,
    captions: str = SOURCE,
    on_progress: ProgressCallback | None = None,
    device: str = "cpu",
) -> Commit:
    """Write key, score, status and reason of every row. The group `clip.group` has to stand.

    Rows without an embedding fail with its reason, rows without a caption with `no_caption`. CLIP reads the first 77
    tokens of a caption.
    """
    run = StepRun(dataset, similarity_step(dataset, clip, captions), on_progress)
    if run.committed:
        return run.committed
    group = similarity_group(captions, clip.group)
    check_free(dataset, group, run.step)
    embedder = ClipEmbedder(clip, device)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        images = dataset.table(clip.group, shard)
        texts = dataset.table(captions, shard, ["caption" if captions == SOURCE else "text"]).column(0).to_pylist()
        output.columns(group, _table(images, texts, embedder))
        output.finish(len(texts))
    return run.commit()


def _table(images: pa.Table, texts: list[str | None], embedder: ClipEmbedder) -> pa.Table:
    halves, there = stored(images.column("embedding"))
    captioned = np.array([bool(text) for text in texts], bool)
    reasons = images.column("reason").to_pylist()
    reasons = [why or (None if text else "no_caption") for why, text in zip(reasons, captioned, strict=True)]
    both = captioned[there]
    pictures, rows = unit(halves[both]), there[both]
    scores, missing = np.zeros(len(texts), np.float32), np.ones(len(texts), bool)
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        told = embedder.embed_texts([texts[row] or "" for row in some.tolist()])
        if told.shape[1] != pictures.shape[1]:
            raise ConfigurationError(
                f"The stored embeddings have {pictures.shape[1]} numbers, this CLIP's {told.shape[1]}; they come from "
                "another network."
            )
        scores[some] = (pictures[start : start + BATCH] * told).sum(axis=1)
        missing[some] = False
    return pa.table(
        {
            "key": images.column("key"),
            "score": pa.array(scores, mask=missing),
            "status": pa.array(["failed" if why else "ok" for why in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
