"""Ray actors embed as one process does; the real ViT-L/14 graph scores photographs from shards to column."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from filtering.aesthetic import load_head, score_aesthetics
from filtering.embedding import ARCHITECTURE, Clip, Pool, embed_images
from harmon.training.launch import local_ray
from pipelines.audit import audit
from tests.filtering.pictured import Row, tiny_clip, write_rows
from tests.filtering.planted import encoded, photographs
from tests.parts import need_shared

HEAD = "reference/aesthetic/sac+logos+ava1-l14-linearMSE.pth"


def test_actors_write_the_embeddings_that_one_process_writes(tmp_path: Path) -> None:
    clip = Clip(tiny_clip(tmp_path), str(tmp_path / "tiny-stand-in.json"))
    rows = [Row(f"r{n}", n) for n in range(9)] + [Row("words", text=True)]
    alone, apart = (write_rows(tmp_path / name / "toys", rows, 3) for name in ("alone", "apart"))
    embed_images(alone, clip)
    told = []
    with local_ray(2):
        embed_images(apart, clip, told.append, Pool(actors=(1, 2)))
    assert told[-1].shards_done == 4
    assert audit(apart).sound
    found = [dataset.whole_table(clip.group).to_pylist() for dataset in (alone, apart)]
    assert found[0] == found[1]
    assert [one.head.content_hash for one in (alone, apart) if one.head].count(alone.head.content_hash) == 2  # type: ignore[union-attr]


@pytest.mark.skipif(not os.environ.get("HARMON_SOAK"), reason="428 million random weights: only with HARMON_SOAK=1")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_real_graph_scores_photographs_end_to_end_with_random_weights(tmp_path: Path, precision: str) -> None:
    """Random weights, since none can be fetched here: the scores mean nothing, the path to them is the real one."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE)
    torch.save(model.state_dict(), tmp_path / "random.pt")
    pictures = photographs()[:2]
    dataset = write_rows(tmp_path / "photographs", [Row(f"p{n}", data=encoded(p)) for n, p in enumerate(pictures)])
    clip = Clip(tmp_path / "random.pt", precision=precision)  # type: ignore[arg-type]
    embed_images(dataset, clip)
    vectors = np.array(dataset.whole_table(clip.group).column("embedding").to_pylist(), np.float32)
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    batch = torch.stack([preprocess(reopened(encoded(picture))) for picture in pictures])
    with torch.inference_mode():
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    cosines = (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert vectors.shape == (2, 768)
    assert (cosines > (0.999999 if precision == "float32" else 0.999)).all()
    head = load_head(need_shared(HEAD))
    score_aesthetics(dataset, head, clip.group)
    scores = dataset.whole_table(head.group(clip.group)).column("score").to_pylist()
    np.testing.assert_allclose(scores, head.score(expected), atol=1e-2 if precision == "float32" else 0.2)


def reopened(data: bytes):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")
