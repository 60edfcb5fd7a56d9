"""Encoders give maps without buffers, features are kept by content and made once, and sets are read as told."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import make_autoencoder, make_corpus, tiny_model
from PIL import Image
from small_checkpoints import kl_weights, make_run, weights
from torch import Tensor

from harmon.evaluation.encoders import (
    LatentEncoder,
    MarEncoder,
    as_map,
    clip_encoder,
    frozen,
    native_px,
    pooled,
    pretrained_encoders,
    trained_encoders,
)
from harmon.evaluation.features import extract
from harmon.evaluation.labelled import LabelledPicture, open_labelled, png
from harmon.latents import load_autoencoder
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid, Mar
from harmon.trained import load
from pipelines.errors import ConfigurationError, HarmonError
from tests.filtering.pictured import tiny_clip


def picture(number: int) -> bytes:
    return png(np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8))


def pictures(numbers: Sequence[int]) -> list[LabelledPicture]:
    return [LabelledPicture(partial(picture, number), str(number % 2), number % 3 > 0) for number in numbers]


@dataclass(eq=False)
class Colours:
    """The mean colours of quarters, and how many pictures it has seen."""

    name: str = "colours"
    stand_in: str = ""
    px: int = 16
    key: str = "colours"
    seen: list[int] = field(default_factory=list)

    def maps(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 8)


def test_the_map_of_mar_drops_the_buffers_and_keeps_the_raster(tmp_path: Path) -> None:
    grid = Grid(2, 3)
    x_BSD = torch.arange(2 * (4 + 6) * 5.0).reshape(2, 10, 5)
    maps = as_map(x_BSD, grid, 4)
    assert maps.shape == (2, 5, 2, 3)
    for position in range(6):
        row, column = divmod(position, 3)
        assert torch.equal(maps[:, :, row, column], x_BSD[:, 4 + position])


@pytest.fixture
def mar_encoder(tmp_path: Path) -> MarEncoder:
    config: HarmonConfig = tiny_model()
    config = config.model_copy(update={"mar": config.mar.model_copy(update={"class_count": 3})})
    torch.manual_seed(0)
    autoencoder = load_autoencoder(make_autoencoder(tmp_path / "patch_latent.safetensors"))
    return MarEncoder("mar", frozen(Mar(config.mar, config.head)), frozen(autoencoder), 64)


def test_mar_reads_the_null_embedding_and_no_class(mar_encoder: MarEncoder) -> None:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    before, key = pooled(mar_encoder, images, "mean"), mar_encoder.key
    assert before.shape == (2, 24)
    mar_encoder.mar.class_emb.weight.data += 1
    assert torch.equal(pooled(mar_encoder, images, "mean"), before) and mar_encoder.key == key
    assert native_px(mar_encoder.mar, mar_encoder.autoencoder.stride) == 64
    mar_encoder.mar.fake_latent.data += torch.randn(1, 24)
    assert not torch.equal(pooled(mar_encoder, images, "mean"), before) and mar_encoder.key != key


def test_buffers_are_pooled_where_asked_for_and_only_of_mar(mar_encoder: MarEncoder) -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    x_BSD = mar_encoder.mar.encode(*mar_encoder.tokens(images))
    torch.testing.assert_close(pooled(mar_encoder, images, "buffers"), x_BSD[:, :4].mean(1))
    torch.testing.assert_close(pooled(mar_encoder, images, "mean"), x_BSD[:, 4:].mean(1))
    latents = LatentEncoder("vae", mar_encoder.autoencoder, 64)
    assert pooled(latents, images, "flat").shape == (2, 16 * 16)
    with pytest.raises(ConfigurationError, match="vae has no buffers"):
        pooled(latents, images, "buffers")


def test_a_checkpoint_and_mars_own_file_give_the_same_encoders(tmp_path: Path) -> None:
    trained = load(make_run(tmp_path / "run"))
    mar, vae = trained_encoders(trained, "run")
    assert (mar.px, vae.px) == (64, 64)
    assert isinstance(mar, MarEncoder) and mar.inform is not None and not mar.stand_in
    assert "stand-in" in vae.stand_in  # the patch latent says so itself
    drawn = {name.removeprefix("mar."): value for name, value in weights(tiny_model()).items() if name[:4] == "mar."}
    torch.save({"model_ema": drawn}, tmp_path / "checkpoint-last.pth")
    torch.save({"model": kl_weights()}, tmp_path / "kl16.ckpt")
    (tmp_path / "sizes.json").write_text(tiny_model().model_dump_json())
    alone, _ = pretrained_encoders(
        tmp_path / "checkpoint-last.pth", tmp_path / "kl16.ckpt", model=str(tmp_path / "sizes.json")
    )
    assert isinstance(alone, MarEncoder) and alone.inform is None
    tokens, grid = torch.rand(1, 16, 16), Grid(4, 4)
    assert torch.equal(alone.mar.encode(tokens, grid), mar.mar.encode(tokens, grid))


def test_a_clip_tower_gives_patch_tokens_and_random_weights_say_so(tmp_path: Path) -> None:
    file = tiny_clip(tmp_path, seed=1)
    named, random = clip_encoder("tiny-stand-in", file), clip_encoder("tiny-stand-in", None)
    assert not named.stand_in
    assert random.name == "tiny-stand-in, random" and "random weights" in random.stand_in
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = named.maps(images)
    assert maps.shape == (2, 32, 2, 2)
    assert maps.mean(1).abs().max() < 1e-4  # behind the last norm, whose weights are fresh
    assert named.key != random.key
    with pytest.raises(ConfigurationError, match="knows no network 'SigLIP-9000'"):
        clip_encoder("SigLIP-9000", None)
    with pytest.raises(ConfigurationError, match="absent"):
        clip_encoder("tiny-stand-in", tmp_path / "nowhere.pt")


def test_a_killed_extraction_goes_on_behind_the_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmon.evaluation.features.BATCH", 4)
    monkeypatch.setattr("harmon.evaluation.kept.PART_ROWS", 8)
    encoder, some = Colours(), pictures(range(20))

    def killed() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(encoder, [*some[:14], LabelledPicture(killed, "0", True)], tmp_path)
    assert sum(encoder.seen) == 12  # of which 8 are kept
    encoder.seen.clear()
    resumed = extract(encoder, some, tmp_path)
    assert sum(encoder.seen) == 12
    whole = extract(Colours(), some, tmp_path / "other")
    assert resumed.rows == whole.rows == tuple(range(20))
    assert np.array_equal(resumed.values, whole.values)


def test_a_picture_is_encoded_once_whatever_its_place_and_label(tmp_path: Path) -> None:
    encoder = Colours()
    first = extract(encoder, pictures([1, 2, 3, 2]), tmp_path)
    assert sum(encoder.seen) == 3 and np.array_equal(first.values[1], first.values[3])
    relabelled = [LabelledPicture(partial(picture, number), "new", True) for number in (3, 1)]
    again = extract(encoder, relabelled, tmp_path)
    assert sum(encoder.seen) == 3 and np.array_equal(again.values, first.values[[2, 0]])
    extract(encoder, pictures([1]), tmp_path, "flat")  # another feature, so another folder
    assert sum(encoder.seen) == 4 and len(list(tmp_path.iterdir())) == 2


def test_what_is_no_picture_is_counted_and_a_damaged_part_is_named(tmp_path: Path) -> None:
    broken = LabelledPicture(lambda: b"no picture", "0", True)
    found = extract(Colours(), [*pictures([1]), broken, *pictures([2])], tmp_path)
    assert found.unreadable == 1 and found.rows == (0, 2) and len(found.values) == 2
    with pytest.raises(HarmonError, match="None of the 1 pictures"):
        extract(Colours(), [broken], tmp_path)
    (part,) = tmp_path.glob("*/*.parquet")
    part.write_bytes(b"PAR1")
    with pytest.raises(HarmonError, match=part.name):
        extract(Colours(), pictures([1]), tmp_path)


def test_folders_are_read_as_imagenet_is_kept_and_without_sides_a_fifth_is_held_back(tmp_path: Path) -> None:
    for side, number in (("train", 3), ("val", 2)):
        for label in ("ape", "bee"):
            folder = tmp_path / "sides" / side / label
            folder.mkdir(parents=True)
            for row in range(number):
                (folder / f"{row}.png").write_bytes(picture(row))
            (folder / "notes.txt").write_text("no picture")
    sides = open_labelled(str(tmp_path / "sides"))
    assert [(one.label, one.trains) for one in sides.pictures] == [("ape", True)] * 3 + [("bee", True)] * 3 + [
        ("ape", False), ("ape", False), ("bee", False), ("bee", False),
    ]  # fmt: skip
    for label in ("ape", "bee"):
        (tmp_path / "plain" / label).mkdir(parents=True)
        for row in range(50):
            (tmp_path / "plain" / label / f"{row}.png").write_bytes(b"read later")
    plain = open_labelled(str(tmp_path / "plain"))
    assert len(plain.pictures) == 100 and 8 < sum(not one.trains for one in plain.pictures) < 35
    with pytest.raises(ConfigurationError, match="There are no pictures"):
        open_labelled(str(tmp_path / "nowhere"))
    (tmp_path / "sides" / "val" / "cat").mkdir()
    (tmp_path / "sides" / "val" / "cat" / "0.png").write_bytes(picture(0))
    with pytest.raises(ConfigurationError, match="'cat', which none to train on shows"):
        open_labelled(str(tmp_path / "sides"))


def test_a_dataset_is_labelled_by_a_column(tmp_path: Path) -> None:
    dataset = make_corpus(tmp_path / "corpus", shards=2, rows=30)
    labelled = open_labelled(str(dataset.root), "source.task")
    assert labelled.classes == ("image2text", "text2image")  # rows of text have no picture
    assert len(labelled.pictures) == 40
    with Image.open(io.BytesIO(labelled.pictures[0].read())) as opened:
        assert opened.size == (64, 64)
    with pytest.raises(ConfigurationError, match="no column 'colour'"):
        open_labelled(str(dataset.root), "source.colour")
    with pytest.raises(ConfigurationError, match="no column group 'caption'"):
        open_labelled(str(dataset.root), "caption.text")


def test_the_sets_at_hand_have_both_sides_of_every_label() -> None:
    digits, shapes = open_labelled("digits"), open_labelled("scene-shapes")
    assert len(digits.pictures) == 1797 and set(digits.classes) == set("0123456789")
    assert len(shapes.pictures) == 2000 and len(shapes.classes) == 4
    assert sum(not one.trains for one in shapes.pictures) == 400
    with Image.open(io.BytesIO(digits.pictures[0].read())) as opened:
        assert opened.size == (8, 8)
