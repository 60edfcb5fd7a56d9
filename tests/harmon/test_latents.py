import numpy as np
import pytest
import torch
from miniature import make_autoencoder, make_corpus
from PIL import Image

from harmon.latents import VERSION, latents_array, latents_group, load_autoencoder, prove_latents, write_latents
from harmon.pictures import centre_crop, padded_square
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.forget import forget
from pipelines.request import Request
from pipelines.shards import ImageShard


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    autoencoder = make_autoencoder(folder / "patch_latent.safetensors")
    square, wide = make_corpus(folder / "square", shards=2), make_corpus(folder / "wide", shards=1, wide=True)
    for dataset in (square, wide):
        write_latents(dataset, 64, autoencoder)
    return square, wide, autoencoder


def picture(dataset: Dataset, row: int) -> Image.Image:
    import io

    key = dataset.table("source", 0, ["key"])["key"][row].as_py()
    return Image.open(io.BytesIO(dataset.images(0).find(key).data)).convert("RGB")


def test_a_row_holds_the_autoencoders_latents_of_its_centre_square(written):
    _, wide, path = written
    table = wide.table(latents_group(64, path), 0)
    pixels, box = centre_crop(picture(wide, 0), 64)
    expected = load_autoencoder(path).encode(torch.from_numpy(pixels)[None]).flatten().numpy()
    assert np.abs(latents_array(table["crop"])[0] - expected.astype(np.float16)).max() < 2e-3
    assert table["crop_box"][0].as_py() == list(box) == [32, 0, 96, 64]


def test_wide_pictures_have_padded_latents_and_square_ones_do_not(written):
    square, wide, path = written
    name = latents_group(64, path)
    pictured = [task != "text" for task in wide.table("source", 0, ["task"])["task"].to_pylist()]
    assert wide.table(name, 0)["padded"].is_valid().to_pylist() == pictured
    assert square.table(name, 0)["padded"].null_count == square.rows(0)
    expected = load_autoencoder(path).encode(torch.from_numpy(padded_square(picture(wide, 1), 64))[None])
    stored = latents_array(wide.table(name, 0)["padded"])[1]
    assert np.abs(stored - expected.flatten().numpy().astype(np.float16)).max() < 2e-3


def test_rows_without_a_picture_are_null_and_failed(written):
    square, _, path = written
    table = square.table(latents_group(64, path), 0)
    tasks = square.table("source", 0, ["task"])["task"].to_pylist()
    assert [box is None for box in table["crop_box"].to_pylist()] == [task == "text" for task in tasks]
    assert table["reason"].to_pylist() == ["no_image" if task == "text" else None for task in tasks]
    assert table["status"].to_pylist() == ["failed" if task == "text" else "ok" for task in tasks]
    assert (square.head.rows_out, dict(square.head.failed)) == (16, {"no_image": 8})
    assert audit(square, deep=True).sound


def test_a_picture_that_the_shard_does_not_hold_is_failed(written, monkeypatch, tmp_path):
    _, _, path = written
    corpus = make_corpus(tmp_path / "lost", shards=1)
    lost = corpus.table("source", 0, ["key"])["key"][0].as_py()
    find = ImageShard.find
    monkeypatch.setattr(ImageShard, "find", lambda shard, key: None if key == lost else find(shard, key))
    write_latents(corpus, 64, path)
    row = corpus.table(latents_group(64, path), 0).slice(0, 1).to_pylist()[0]
    assert (row["crop"], row["status"], row["reason"]) == (None, "failed", "no_image")


def test_a_second_run_changes_nothing(written):
    square, _, path = written
    head = square.head
    assert write_latents(square, 64, path) == head


def test_two_datasets_with_the_same_rows_get_the_same_content(written, tmp_path):
    square, _, path = written
    again = make_corpus(tmp_path / square.name, shards=2)
    assert write_latents(again, 64, path).content_hash == square.head.content_hash


def test_padding_is_grey_and_pixels_go_from_minus_one_to_one():
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    pixels = padded_square(image, 64)
    assert np.allclose(pixels[:, 0, 0], 2 * (127 / 255) - 1)
    assert np.allclose(pixels[:, 32, 32], [1, -1, -1])


def test_a_side_the_stride_does_not_divide_is_refused(written):
    square, _, path = written
    with pytest.raises(HarmonError, match="stride 16"):
        write_latents(square, 72, path)


def test_latents_prove_that_they_are_of_these_pictures_pixels_and_autoencoder(written, tmp_path):
    square, _, path = written
    group = latents_group(64, path)
    prove_latents(square, group, 64)
    with pytest.raises(HarmonError, match="not of pictures of 128 px"):
        prove_latents(square, group, 128)
    with pytest.raises(HarmonError, match=r"Nothing says what the group latents\.64-00000000"):
        prove_latents(square, "latents.64-00000000", 64)


def test_latents_of_another_version_of_the_code_are_refused(written, monkeypatch):
    square, _, path = written
    prove_latents(square, latents_group(64, path), 64)
    monkeypatch.setattr("harmon.latents.VERSION", VERSION + 1)
    with pytest.raises(HarmonError, match="made by another version of this code"):
        prove_latents(square, latents_group(64, path), 64)


def test_latents_of_pictures_that_were_changed_since_are_refused(written, tmp_path):
    """Other pictures take the place of those that the latents were made of."""
    _, _, path = written
    corpus, other = make_corpus(tmp_path / "corpus", shards=2), make_corpus(tmp_path / "other", shards=2, wide=True)
    write_latents(corpus, 64, path)
    group, head = latents_group(64, path), corpus.head
    prove_latents(corpus, group, 64)
    files = [other.entry(one.group, one.shard) if one.group == "images" else one for one in head.files]
    changed = head.model_copy(update={"number": head.number + 1, "files": tuple(files), "step": "meddle"})
    (corpus.root / f"manifest/{changed.number:06d}.json").write_bytes(changed.to_bytes())
    with pytest.raises(HarmonError, match="are of other pictures or rows than it has now"):
        prove_latents(Dataset(corpus.root), group, 64)


def test_latents_stand_after_a_sample_is_forgotten(written, tmp_path):
    _, _, path = written
    corpus = make_corpus(tmp_path / "corpus", shards=2)
    write_latents(corpus, 64, path)
    key = corpus.table("source", 0, ["key"])["key"][0].as_py()
    forget(corpus, Request(keys=frozenset([key])))
    again = Dataset(corpus.root)
    prove_latents(again, latents_group(64, path), 64)
    assert key not in again.whole_table(latents_group(64, path), ["key"])["key"].to_pylist()
