"""Pictures go through open_clip's own preprocessing into embeddings of length 1; a tiny CLIP stands in for ViT-L/14."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from filtering.embedding import ARCHITECTURE, Clip, ClipEmbedder, embed_images
from pipelines.errors import ConfigurationError
from tests.filtering.pictured import TINY_CLIP, Row, jpeg, tiny_clip, write_rows


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_embeddings_have_length_1_and_follow_open_clips_preprocessing(weights: Path) -> None:
    import open_clip

    pictures = [jpeg(index, (160, 90)) for index in range(3)]
    embedder = ClipEmbedder(Clip(weights, "tiny-stand-in"))
    found = embedder.embed(np.stack([embedder.pixels(data) for data in pictures]))
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-stand-in", pretrained=str(weights))
    batch = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures])
    with torch.inference_mode():
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)


def test_the_group_holds_half_precision_embeddings_of_rows_with_an_image(tmp_path: Path, weights: Path) -> None:
    dataset = write_rows(tmp_path / "scenes", [Row("a"), Row("text", text=True), Row("b", 2), Row("c", 3)], 2)
    clip = Clip(weights, "tiny-stand-in")
    commit = embed_images(dataset, clip)
    rows = dataset.whole_table(f"clip.tiny-stand-in-{clip.sha256[:8]}-float32").to_pylist()
    assert [row["reason"] for row in rows] == [None, "no_image", None, None]
    assert len(rows[0]["embedding"]) == TINY_CLIP["embed_dim"]
    assert embed_images(dataset, clip) == commit


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=ARCHITECTURE):
        ClipEmbedder(Clip(tmp_path / "none.pt"))


def test_weights_of_another_network_are_refused(tmp_path: Path, weights: Path) -> None:
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigurationError, match="does not hold the weights"):
        ClipEmbedder(Clip(tmp_path / "other.pt", "tiny-stand-in"))
