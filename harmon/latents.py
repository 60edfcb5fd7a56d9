"""The latents step: what the frozen autoencoder makes of every picture, computed once and kept as a column
group.

A frozen encoder that sees in MAR's place (`harmon.model.config.HarmonConfig.understanding_encoder`) has its maps kept
just so, in a group of its own.

Group `latents.<px>-<vae8>`, vae8 = first 8 hex digits of the sha256 of the autoencoder's weights file. One
row a key: `crop` (centre square, for text-to-image), `crop_box` (left, top, right, bottom in picture pixels)
and `padded` (padded with grey to a square, for image-to-text; null where the picture is square, because both
are equal then), each float16 [channels * h * w] in (channel, row, column) order. Other rows have nulls, status
`failed` and a reason: `no_image` (text, or a picture that the shard does not hold) or `undecodable`.

The release crops at random on every visit; a stored latent needs a stated crop, and one crop at the centre is
ours.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from harmon.convert.autoencoders import Autoencoder
from harmon.model.autoencoder import KlAutoencoder
from harmon.model.patch_latent import PatchLatent
from harmon.model.vqgan import Vqgan
from harmon.pictures import centre_crop, padded_square
from harmon.tower import Tower
from pipelines.canonical import sha256_hex
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.manifest import Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun
from pipelines.tombstones import standing

STEP = "latents"
VERSION = 2  # 2: rows without a picture are failed
PictureEncoder = Autoencoder | Vqgan | Tower
"""What latents are made by: the autoencoder that a model draws with, or a frozen encoder that only sees."""
BATCH = 64  # part of the result in its last bits, so it is fixed here and not a setting


def load_autoencoder(path: str | Path) -> Autoencoder:
    """The autoencoder in a safetensors file, a run's or the vae.safetensors of a Hugging Face folder: a patch
    latent if it holds a patch latent's tensors, else a KL one.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise HarmonError(f"The autoencoder {path} cannot be read ({error}); name a safetensors file.") from None
    kind = PatchLatent if {name.removeprefix("vae.") for name in names} == {"mean", "basis", "scale"} else KlAutoencoder
    return kind.from_file(path)


def load_picture_encoder(path: str | Path) -> PictureEncoder:
    """The encoder in a safetensors file: a VQGAN or an image tower as `save` wrote it, else an autoencoder."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names, told = set(file.keys()), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise HarmonError(f"The encoder {path} cannot be read ({error}); name a safetensors file.") from None
    if "quantize.embedding.weight" in names:
        return Vqgan.from_file(path)
    return Tower.from_file(path) if "layout" in told else load_autoencoder(path)


def latents_group(px: int, autoencoder: str | Path) -> str:
    """Name of the column group for pictures of `px` pixels a side and the weights in file `autoencoder`."""
    try:
        return f"latents.{px}-{sha256_hex(Path(autoencoder).read_bytes())[:8]}"
    except OSError as error:
        raise HarmonError(f"The autoencoder {autoencoder} cannot be read ({error.strerror}).") from None


def latents_step(dataset: Dataset, px: int, autoencoder: str | Path) -> Step:
    """The step that writes `latents_group(px, autoencoder)` of `dataset`."""
    return Step(
        name=STEP,
        version=VERSION,
        configuration={"px": px, "autoencoder": sha256_hex(Path(autoencoder).read_bytes())},
        reads=(Reads(dataset, ("images", "source")),),
    )


def write_latents(
    dataset: Dataset, px: int, autoencoder: str | Path, on_progress: ProgressCallback | None = None
) -> Commit:
    """Run the step: every shard that has no receipt, then the commit; nothing where a commit of its key
    stands.

    Raises:
        HarmonError: the autoencoder cannot be read, or its stride does not divide `px`.
    """
    run = StepRun(dataset, latents_step(dataset, px, autoencoder), on_progress)
    if run.committed:
        return run.committed
    model = load_picture_encoder(autoencoder).eval()
    if px % model.stride:
        raise HarmonError(f"Latents of {px} px need a multiple of the autoencoder's stride {model.stride}.")
    for number in run.pending(dataset.shard_numbers):
        with _one_thread():
            table = _shard_table(dataset, number, px, model)
        failed = [reason for reason in table["reason"].to_pylist() if reason]
        output = run.shard(number)
        output.columns(latents_group(px, autoencoder), table)
        output.finish(
            rows_in=table.num_rows,
            rows_failed={reason: failed.count(reason) for reason in sorted(set(failed))},
        )
    return run.commit()


def prove_latents(dataset: Dataset, group: str, px: int) -> None:
    """Prove by hash that column group `group` holds the latents of the pictures that `dataset` has now, cropped as this
    version crops them, at `px` pixels, by the autoencoder in the group's name.

    The commit that wrote the group says of which images, rows, pixels and autoencoder; the key of the step made of
    these and of today's hashes has to be a commit's, or set apart from one by forgetting alone.

    Raises:
        HarmonError: the latents are of other pictures, rows or pixels, of another version of this code, or nothing says
            of which.
    """
    made = [commit for commit in dataset.commits() if commit.step == STEP and _group_of(commit) == group]
    if not made:
        raise HarmonError(
            f"Nothing says what the group {group} of {dataset.root} was made from; run `harmon latents {dataset.root}`."
        )
    if all(commit.configuration["px"] != px for commit in made):
        raise HarmonError(f"The group {group} of {dataset.root} is not of pictures of {px} px; name the one that is.")
    made = [commit for commit in made if commit.version == VERSION]
    if not made:
        raise HarmonError(
            f"The latents {group} of {dataset.root} were made by another version of this code, whose latents differ; "
            "make them again in a new dataset."
        )
    reads = (Reads(dataset, ("images", "source")),)
    if not any(standing(dataset, Step(STEP, VERSION, one.configuration, reads)) for one in made):
        raise HarmonError(
            f"The latents {group} of {dataset.root} are of other pictures or rows than it has now; make them again in "
            "a new dataset, or train on the commit that they were made at."
        )


def _group_of(commit: Commit) -> str:
    return f"latents.{commit.configuration['px']}-{commit.configuration['autoencoder'][:8]}"


def latents_array(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
    """A `crop` or `padded` column as [rows, channels * h * w]; rows that are null hold zeros."""
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = np.zeros((len(combined), combined.type.list_size), dtype=np.float16)
    values[combined.is_valid().to_numpy(zero_copy_only=False)] = (
        combined.flatten().to_numpy(zero_copy_only=False).reshape(-1, combined.type.list_size)
    )
    return values


@contextmanager
def _one_thread() -> Iterator[None]:
    """Float sums depend on how many threads share them, and the bytes written must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Picture:
    """One row of a shard before encoding; a row without pixels has a `reason`."""

    crop: NDArray[np.float32] | None = None
    box: tuple[int, int, int, int] | None = None
    padded: NDArray[np.float32] | None = None
    reason: str | None = None


def _shard_table(dataset: Dataset, number: int, px: int, model: PictureEncoder) -> pa.Table:
    keys: list[str] = dataset.table("source", number, ["key"])["key"].to_pylist()
    size = model.channels * model.side(px) ** 2
    crops, boxes, padded, reasons = [], [], [], []
    for batch in _batches(dataset, number, keys, px):
        crops += _encoded([picture.crop for picture in batch], model)
        padded += _encoded([picture.padded for picture in batch], model)
        boxes += [picture.box for picture in batch]
        reasons += [picture.reason for picture in batch]
    half = pa.list_(pa.float16(), size)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "crop": pa.array(crops, half),
            "crop_box": pa.array(boxes, pa.list_(pa.int32(), 4)),
            "padded": pa.array(padded, half),
            "status": pa.array(["failed" if reason else "ok" for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _batches(dataset: Dataset, number: int, keys: Sequence[str], px: int) -> Iterator[list[_Picture]]:
    """The shard's rows in order, BATCH at a time: which pictures are encoded together depends on the shard
    alone.
    """
    shard = dataset.images(number) if dataset.entry("images", number) else None  # a shard of text alone has none
    batch: list[_Picture] = []
    for key in keys:
        image = shard.find(key) if shard else None
        batch.append(_prepared(image.data, px) if image else _Picture(reason="no_image"))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _prepared(data: bytes, px: int) -> _Picture:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        crop, box = centre_crop(image, px)
        padded = None if image.width == image.height else padded_square(image, px)
    except MemoryError:
        raise  # of this machine and moment, and what is written stays
    except Exception:  # a decoder may raise anything at bytes that are wrong, and is told apart by no class
        return _Picture(reason="undecodable")
    return _Picture(crop, box, padded)


def _encoded(pixels: Sequence[NDArray[np.float32] | None], model: PictureEncoder) -> list[NDArray[np.float16] | None]:
    present = [image for image in pixels if image is not None]
    if not present:
        return [None] * len(pixels)
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(np.stack(present))).flatten(1).numpy().astype(np.float16)
    rows = iter(latents)
    return [None if image is None else next(rows) for image in pixels]
