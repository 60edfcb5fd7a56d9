"""Pictures decoded while training: the tensors of stored latents, and corrupt ones rejected, never replaced."""

import io
import json
import logging
import multiprocessing
import os
import signal
import struct
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from miniature import TOKENIZER, make_autoencoder, make_corpus, make_job, mixture, small_stage, tiny_model
from PIL import Image

from harmon.model.autoencoder import KlAutoencoder, KlConfig
from harmon.pixels import padded_square_pixels, square_pixels
from harmon.text import ChatText
from harmon.training.data import ChatBatch, ImageBatch, StageData
from harmon.training.decoding import Decoder, Online
from harmon.training.job import TrainJob, done, metrics_lines, training_key
from harmon.training.loop import train
from harmon.training.mixture import blocks_of_step
from harmon.training.rows import StageRows
from harmon.training.squares import Rejected, Wanted, decode, shrunk_by, square
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun
from tests.s3_server import s3_root, s3_server

__all__ = ["s3_root", "s3_server"]

torch.set_num_threads(1)
STAGE = small_stage()
CUT = (6, 7, 13)  # one row for drawing, one for seeing, one more for seeing


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def autoencoder(folder) -> Path:
    return make_autoencoder(folder / "patch_latent.safetensors")


@pytest.fixture(scope="module")
def wide_cut(folder) -> Dataset:
    return make_corpus(folder / "cut", wide=True, cut=CUT)


def online_data(dataset: Dataset, autoencoder: Path, **settings: object) -> StageData:
    online = Online(autoencoder=str(autoencoder), **({"workers": 0} | settings))
    return StageData(STAGE, mixture(dataset), tiny_model(), ChatText(TOKENIZER), online)


def batches(data: StageData, world: int = 1, steps: int = 4) -> list[list[ImageBatch | ChatBatch | None]]:
    """The batches of every block, one for each worker."""
    return [
        [data.batch(block, rank, world) for rank in range(world)]
        for step in range(steps)
        for block in blocks_of_step(STAGE, step)
    ]


def same(ours: ImageBatch | ChatBatch, theirs: ImageBatch | ChatBatch, tolerance: float = 0.0) -> bool:
    pairs = zip(vars(ours).values(), vars(theirs).values(), strict=True)
    return all(
        torch.allclose(a, b, rtol=0, atol=tolerance) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


def test_centre_squares_give_the_tensors_of_stored_latents(folder):
    job = make_job(folder / "stored", STAGE)
    dataset = Dataset(job.mixture.text[0].dataset)
    stored = StageData(STAGE, job.mixture, job.model, ChatText(job.tokenizer), job.latents)
    online = online_data(dataset, folder / "stored" / "patch_latent.safetensors", crop="centre")
    for (ours,), (theirs,) in zip(batches(online), batches(stored), strict=True):
        assert same(ours, theirs, tolerance=4e-3)  # stored ones are float16


def test_a_corrupt_picture_leaves_its_batch_and_nothing_comes_instead(folder, autoencoder, wide_cut):
    whole = make_corpus(folder / "whole", wide=True)
    record = folder / "rejects.jsonl"
    sound, cut = online_data(whole, autoencoder), online_data(wide_cut, autoencoder, rejects=str(record))
    rejected = {"text2image": 0, "image2text": 0}
    keys = wide_cut.whole_table("source", ["key"])["key"].to_pylist()
    bad = {keys[row] for row in CUT}
    for step in range(6):
        for block in blocks_of_step(STAGE, step):
            keep = [n for n in block.share(0, 1) if sound.rows.row(block.task, n).place.key not in bad]
            ours = cut.batch(block, 0, 1)
            if block.task != "text":
                rejected[block.task] += block.rows - len(keep)
            if not keep:
                assert ours is None
                continue
            draw = sound.images if block.task == "text2image" else lambda _, n, t=block.task: sound.chats(t, n)
            assert same(ours, draw(block, keep))
    assert {task: dict(counts) for task, counts in cut.rejected.items()} == {
        task: {"undecodable": count} for task, count in rejected.items()
    }
    assert min(rejected.values()) > 1
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert {line["key"] for line in lines} == bad
    assert len(lines) == len({(line["task"], line["key"]) for line in lines})


@pytest.mark.parametrize("settings", [{}, {"crop": "centre"}])
def test_any_number_of_workers_gets_the_same_rows(autoencoder, wide_cut, settings):
    wholes = batches(online_data(wide_cut, autoencoder, **settings))
    for world in (2, 4, 8):
        for (whole,), parts in zip(wholes, batches(online_data(wide_cut, autoencoder, **settings), world), strict=True):
            present = [part for part in parts if part is not None]
            assert sum(part.count for part in present) == (whole.count if whole else 0)
            if whole is not None and whole.latents is not None:
                assert torch.equal(torch.cat([part.latents for part in present]), whole.latents)


def test_latents_do_not_depend_on_the_pictures_beside_them(autoencoder, wide_cut):
    """The released autoencoder's layers, whose float sums depend on a batch's shape; shares of 1 to 7 pictures."""
    data = online_data(wide_cut, autoencoder)
    torch.manual_seed(0)
    data._online._autoencoder = KlAutoencoder(KlConfig(base_channels=32, res_blocks=1)).eval()
    numbers = range(7)
    _, together = data._online.latents("image2text", numbers)
    apart = [data._online.latents("image2text", [number])[1] for number in numbers]
    assert torch.equal(together, torch.cat([one for one in apart if len(one)]))
    assert len(together) > 3


def test_a_gpus_batches_have_one_shape_too(autoencoder, wide_cut):
    data = online_data(wide_cut, autoencoder)
    alone = data._online.latents("image2text", range(7))[1]
    data._online._batch = 4
    shapes = []
    encode = data._online._autoencoder.encode
    data._online._autoencoder.encode = lambda images: shapes.append(tuple(images.shape)) or encode(images)
    filled = data._online.latents("image2text", range(7))[1]
    assert set(shapes) == {(4, 3, 64, 64)}
    assert torch.allclose(filled, alone, atol=1e-5)


def test_decoding_processes_give_what_the_trainer_itself_decodes(autoencoder, wide_cut):
    apart = online_data(wide_cut, autoencoder, workers=2, ahead=1)
    try:
        for (ours,), (theirs,) in zip(batches(apart), batches(online_data(wide_cut, autoencoder)), strict=True):
            assert (ours is None and theirs is None) or same(ours, theirs)
    finally:
        apart.close()


def test_a_square_is_drawn_anew_at_each_visit(autoencoder, wide_cut):
    data = online_data(wide_cut, autoencoder)
    places = [data.rows.row("text2image", number).place.key for number in range(200)]
    again = [number for number, key in enumerate(places) if key == places[0]]
    first, second = (data._online.latents("text2image", [number])[1] for number in again[:2])
    assert not torch.allclose(first, second, atol=0.05)


def test_pictures_in_s3_are_those_on_disk(s3_root, autoencoder, folder):
    local, remote = make_corpus(folder / "here"), make_corpus(f"{s3_root}/here")
    for (ours,), (theirs,) in zip(
        batches(online_data(remote, autoencoder), steps=1), batches(online_data(local, autoencoder), steps=1)
    ):
        assert same(ours, theirs)


def test_a_large_jpeg_decoded_small_is_nearly_the_same_picture(tmp_path):
    rows = np.linspace(0, 255, 900)[:, None, None] * np.array([1.0, 0.5, 0.2])
    picture = Image.fromarray(np.broadcast_to(rows, (900, 1300, 3)).astype(np.uint8))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    dataset = _one_picture(tmp_path / "one", stream.getvalue())
    whole, drafted = (
        decode([Wanted(str(dataset.root), 0, "0" * 32, 128, False, 0.3, draft)])[0] for draft in (False, True)
    )
    assert whole.shape == drafted.shape == (128, 128, 3)
    assert not np.array_equal(whole, drafted)
    assert np.abs(whole.astype(int) - drafted).max() <= 3


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"quality": 30},
        {"keep_rgb": True}, {"mode": "L"}, {"mode": "CMYK"}, {"size": (301, 419)}, {"cut": 400}, {"format": "PNG"},
    ],
)  # fmt: skip
def test_pixels_are_those_that_pillow_decodes_and_resizes(how, draft, padded):
    data = _encoded(**how)
    wanted = Wanted("", 0, "", 64, padded, 0.3, draft)

    def pillow() -> np.ndarray:
        with Image.open(io.BytesIO(data)) as opened:
            shrink = min(opened.size) // 128
            if draft and shrink >= 2:
                opened.draft("RGB", (opened.width // shrink, opened.height // shrink))
            picture = opened.convert("RGB")
        return padded_square_pixels(picture, 64) if padded else square_pixels(picture, 64, 0.3)

    if "cut" in how:
        for refuses in (pillow, lambda: square(data, wanted)):
            with pytest.raises(OSError, match="truncated"):
                refuses()
        return
    assert np.array_equal(square(data, wanted), pillow())
    by_torch = square(data, replace(wanted, resizer="torch"))
    assert np.abs(by_torch.astype(int) - pillow()).max() <= 1


def test_a_jpeg_keeps_twice_the_side_that_is_wanted():
    found = {side: shrunk_by((side, side + 9), 64) for side in (50, 127, 255, 256, 400, 512, 1023, 1024, 9000)}
    assert found == {50: 1, 127: 1, 255: 1, 256: 2, 400: 2, 512: 4, 1023: 4, 1024: 8, 9000: 8}


@pytest.mark.parametrize("shared", [True, False])
def test_pictures_cross_in_shared_memory_or_with_the_answer(tmp_path, monkeypatch, shared):
    if not shared:
        monkeypatch.delattr(os, "memfd_create")
    dataset = _one_picture(tmp_path / "one", _encoded())
    wanted = [Wanted(str(dataset.root), 0, "0" * 32, px, padded) for px in (64, 32) for padded in (False, True)]
    gone = replace(wanted[0], key="1" * 32)
    decoder = Decoder(2)
    try:
        for _ in range(3):  # memory is used again
            chunks = [decoder.ask([*wanted, gone, *wanted, gone]) for _ in range(4)]
            for found in ([one for asked in chunk for one in asked.result()] for chunk in chunks):
                expected = [*decode(wanted), Rejected("no_image")] * 2
                assert all(a == b if isinstance(b, Rejected) else np.array_equal(a, b) for a, b in zip(found, expected))
        assert len(decoder._slabs._descriptors) == (8 if shared else 0)
    finally:
        decoder.close()


def test_the_faster_resizer_stands_in_the_key_and_the_usual_one_left_it_as_it_was(folder, autoencoder, wide_cut):
    def latents(**settings: object) -> object:
        return _job(folder, autoencoder, wide_cut, **settings).contents()["latents"]

    assert set(latents()) == {"online", "crop", "draft"}
    assert latents(resizer="torch") == latents() | {"resizer": "torch"}


def test_what_online_latents_are_stands_in_the_key_and_how_does_not(folder, autoencoder, wide_cut):
    def key(**settings: object) -> str:
        return training_key(_job(folder, autoencoder, wide_cut, **settings))

    assert key() == key(workers=3, ahead=7, rejects="elsewhere")
    assert len({key(), key(crop="centre"), key(draft=False)}) == 3


def test_a_stage_trains_on_pictures_some_of_which_are_corrupt(folder, autoencoder, wide_cut):
    job = _job(folder, autoencoder, wide_cut)
    assert done(train(job), training_key(job))["steps"] == 3


def test_lines_of_metrics_count_the_rejected_pictures_of_each_source(folder, autoencoder, wide_cut):
    job = _job(folder, autoencoder, wide_cut).model_copy(update={"runs": str(folder / "counted"), "log_every": 1})
    lines = metrics_lines(train(job))
    rows, keys = StageRows(job.stage, job.mixture, None), wide_cut.whole_table("source", ["key"])["key"].to_pylist()
    bad, total = {keys[row] for row in CUT}, 0
    for step, line in enumerate(lines):
        expected: dict[str, dict[str, int]] = {}
        for block in blocks_of_step(job.stage, step):
            for row in (rows.row(block.task, number) for number in block.share(0, 1)):
                if block.task != "text" and row.place.key in bad:
                    counts = expected.setdefault(block.task, {})
                    name = job.mixture.lines(block.task)[row.line]
                    counts[name], total = counts.get(name, 0) + 1, total + 1
        assert line["rejected"] == expected
    assert total and len(lines) == 3


@pytest.mark.parametrize(
    "error", [EOFError, IndexError, struct.error, zlib.error, MemoryError, Image.DecompressionBombWarning, KeyError]
)
def test_whatever_a_decoder_raises_is_a_reject_with_its_reason(tmp_path, monkeypatch, error):
    def fail(picture, mode):
        raise error("bad bytes")

    dataset = _one_picture(tmp_path / "one", _encoded("PNG"))
    monkeypatch.setattr(Image.Image, "convert", fail)
    (found,) = decode([Wanted(str(dataset.root), 0, "0" * 32, 64, False)])
    assert found.reason == "undecodable" and found.detail.startswith(error.__name__) and "bad bytes" in found.detail


def test_a_bomb_is_a_reject_where_warnings_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    dataset = _one_picture(tmp_path / "one", _jpeg(80, 80))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        (found,) = decode([Wanted(str(dataset.root), 0, "0" * 32, 64, False)])
    assert "DecompressionBombWarning" in found.detail


class Deadly(Wanted):
    """A picture that ends the process that is given it, as one does whose decoder crashes or is killed."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_picture_that_ends_its_decoder_twice_is_a_reject_and_the_others_come(tmp_path, caplog):
    dataset = _one_picture(tmp_path / "one", _jpeg(64, 64))
    sound = Wanted(str(dataset.root), 0, "0" * 32, 64, False)
    expected = decode([sound])[0]
    decoder = Decoder(2)
    try:
        with caplog.at_level(logging.WARNING):
            asked = decoder.ask([*[sound] * 9, Deadly(**vars(sound)), *[sound] * 6])
            found = [one for chunk in asked for one in chunk.result()]
            later = [one for chunk in decoder.ask([sound] * 9) for one in chunk.result()]
        assert [place for place, one in enumerate(found) if isinstance(one, Rejected)] == [9]
        assert found[9].reason == "ends_its_decoder"
        assert all(np.array_equal(one, expected) for one in [*found[:9], *found[10:], *later])
        assert "are started again" in caplog.text
    finally:
        decoder.close()


def test_pictures_whose_decoders_are_killed_once_come_all_the_same(tmp_path):
    dataset = _one_picture(tmp_path / "one", _jpeg(1500, 1500))
    sound = Wanted(str(dataset.root), 0, "0" * 32, 64, False)
    expected = decode([sound])[0]
    decoder = Decoder(2)
    try:
        asked = decoder.ask([sound] * 64)
        asked[0].result()
        os.kill(next(iter(decoder._pool._processes)), signal.SIGKILL)
        found = [one for chunk in asked for one in chunk.result()]
        assert len(found) == 64 and all(np.array_equal(one, expected) for one in found)
    finally:
        decoder.close()


def test_decoding_processes_end_with_a_trainer_that_is_killed():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    trainer = context.Process(target=_decode_for_ever, args=(theirs,))
    trainer.start()
    children = ours.recv()
    assert children and all(_runs(pid) for pid in children)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in children if _runs(pid)]


def _decode_for_ever(pipe) -> None:
    decoder = Decoder(2)
    decoder._pool.submit(os.getpid).result()
    pipe.send(list(decoder._pool._processes))
    time.sleep(120)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _job(folder: Path, autoencoder: Path, dataset: Dataset, **settings: object) -> TrainJob:
    return TrainJob(
        stage=small_stage(steps=3),
        mixture=mixture(dataset),
        model=tiny_model(),
        tokenizer=str(TOKENIZER),
        latents=Online(autoencoder=str(autoencoder), **({"workers": 0} | settings)),
        runs=str(folder / "train"),
    )


def _encoded(format="JPEG", mode="RGB", size=(420, 300), cut=None, **how: object) -> bytes:
    """A picture with edges, colours and grain."""
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 255, (9, 12, 3), np.uint8)).resize(size)
    grainy = np.asarray(small, np.float32) + draw.normal(0, 9, (size[1], size[0], 1))
    stream = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).convert(mode).save(stream, format, **how)
    return stream.getvalue()[: None if cut is None else -cut]


def _jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def _one_picture(folder: Path, data: bytes) -> Dataset:
    dataset = Dataset(folder)
    run = StepRun(dataset, Step("one", 1, {}, ()))
    run.pending([0])
    output = run.shard(0)
    output.images().add("0" * 32, data, "jpg", {})
    row = dict.fromkeys(SOURCE_SCHEMA.names) | {"key": "0" * 32, "task": "text2image", "ext": "jpg"}
    output.columns("source", pa.Table.from_pylist([row], SOURCE_SCHEMA))
    output.finish(rows_in=1)
    run.commit()
    return dataset
