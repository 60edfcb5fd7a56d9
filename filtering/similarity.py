"""How well a caption fits its picture: the cosine of their CLIP embeddings, from the stored picture embeddings."""

import numpy as np
import pyarrow as pa

from filtering.embedding import BATCH, Clip, ClipEmbedder
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

STEP_VERSION = 1


def similarity_group(captions: str) -> str:
    """The column group with the similarities of a caption group, `source` or a caption version."""
    return f"similarity.{captions}"


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
    told = {"weights": clip.sha256, "embeddings": clip.group, "captions": captions}
    reads = Reads(dataset, tuple(dict.fromkeys((SOURCE, clip.group, captions))))
    run = StepRun(dataset, Step("similarity", STEP_VERSION, told, (reads,)), on_progress)
    if run.committed:
        return run.committed
    embedder = ClipEmbedder(clip, device)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        images = dataset.table(clip.group, shard)
        texts = dataset.table(captions, shard, ["caption" if captions == SOURCE else "text"]).column(0).to_pylist()
        output.columns(similarity_group(captions), _table(images, texts, embedder))
        output.finish(len(texts))
    return run.commit()


def _table(images: pa.Table, texts: list[str | None], embedder: ClipEmbedder) -> pa.Table:
    vectors, reasons = images.column("embedding").to_pylist(), images.column("reason").to_pylist()
    reasons = [
        why or (None if vector is not None and text else "no_caption")
        for why, vector, text in zip(reasons, vectors, texts, strict=True)
    ]
    there = [row for row, why in enumerate(reasons) if why is None]
    scores: list[float | None] = [None] * len(texts)
    for start in range(0, len(there), BATCH):
        some = there[start : start + BATCH]
        pictures = np.array([vectors[row] for row in some], np.float32)
        pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
        found = (pictures * embedder.embed_texts([texts[row] or "" for row in some])).sum(axis=1)
        for row, value in zip(some, found.tolist(), strict=True):
            scores[row] = value
    return pa.table(
        {
            "key": images.column("key"),
            "score": pa.array(scores, pa.float32()),
            "status": pa.array(["failed" if why else "ok" for why in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
