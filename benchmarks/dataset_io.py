"""Writing and reading shards against webdataset, on the same images in one run, per CPU-second.

python -m benchmarks.dataset_io [--quick]

Compared paths alternate and medians are printed, so that other work on the machine falls on both.
"""

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import webdataset
from PIL import Image

from benchmarks.pictures import make_pictures, make_view
from pipelines.canonical import sample_key
from pipelines.shards import ImageShard, ShardWriter, index_path

GOALS = {"write": 2.5, "read": 15.0, "decode": 0.95}
SIZES = {  # height, width, grain that gives JPEG at quality 85 the bytes of such pictures
    "the 256 px of img2dataset's default": (256, 256, 8.0),
    "web photographs": (480, 640, 5.0),
}

Images = Sequence[tuple[str, bytes, dict[str, object]]]
"""Key, encoded bytes, JSON view."""


def main() -> None:
    """Print images per CPU-second and the ratio to the peer: writing, raw random reads, reads with decoding."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = options.parse_args().quick
    count, rounds = (300, 3) if quick else (1000, 15)
    for like, (height, width, grain) in SIZES.items():
        images = make_images(count, height, width, grain)
        size = statistics.mean(len(data) for _, data, _ in images) / 1e3
        print(f"{count} JPEG images of {width} x {height} pixels, {size:.0f} KB, as {like}; medians of {rounds} rounds")
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), images, rounds)


def measure(folder: Path, images: Images, rounds: int) -> None:
    """The three comparisons on one set of images."""
    writing = compare(rounds, lambda: write(folder / "ours.tar", images), lambda: write_peer(folder, images))
    say("write, index and sha256 included", "write", len(images), writing, "webdataset's TarWriter")
    draw = random.Random(0)
    order = [draw.randrange(len(images)) for _ in range(5 * len(images))]
    shard = ImageShard(folder / "ours.tar", index_path(folder / "ours.tar"))
    reading = compare(rounds, lambda: read_raw(shard, order), lambda: 5 * read_peer(folder))
    say("raw bytes in random order", "read", len(order), reading, "webdataset's reader in file order")
    some = order[: len(images) // 4]
    held = [shard.raw(row).data for row in some]
    decoding = compare(rounds, lambda: read_decoded(shard, some), lambda: decode_all(held))
    say("read in random order and decoded", "decode", len(some), decoding, "bare decoding from memory")


def compare(rounds: int, ours: Callable[[], float], peer: Callable[[], float]) -> list[tuple[float, float]]:
    """CPU-seconds of both, round by round; each callable returns its own, so that preparing is left out."""
    return [(ours(), peer()) for _ in range(rounds)]


def say(what: str, goal: str, count: int, seconds: list[tuple[float, float]], peer: str) -> None:
    """One line: our rate, the median of the rounds' ratios, and the goal."""
    ratio = statistics.median(theirs / ours for ours, theirs in seconds)
    rate = count / statistics.median(ours for ours, _ in seconds)
    print(f"{what}: {rate:,.0f} images/CPU-s, {ratio:.2f}x {peer} (goal {GOALS[goal]:g}x)")


def make_images(count: int, height: int, width: int, grain: float) -> Images:
    """Twenty pictures under so many keys, each with the view of a download."""
    made = make_pictures(20, height, width, grain)
    return [(key, made[i % len(made)], make_view(key, i, height, width)) for i, key in enumerate(keys(count))]


def keys(count: int) -> list[str]:
    """So many sample keys."""
    return [sample_key("benchmark", str(i)) for i in range(count)]


def write(path: Path, images: Images) -> float:
    """CPU-seconds of writing a shard with its index and checksums."""
    for old in (path, index_path(path)):
        old.unlink(missing_ok=True)
    start = time.process_time()
    with ShardWriter(path) as shard:
        for key, data, told in images:
            shard.add(key, data, "jpg", told)
    return time.process_time() - start


def write_peer(folder: Path, images: Images) -> float:
    """CPU-seconds of webdataset's writer, which makes neither index nor checksum."""
    path = folder / "theirs.tar"
    path.unlink(missing_ok=True)
    start = time.process_time()
    with webdataset.TarWriter(str(path)) as shard:
        for key, data, told in images:
            shard.write({"__key__": key, "jpg": data, "json": told})
    return time.process_time() - start


def read_raw(shard: ImageShard, order: Sequence[int]) -> float:
    """CPU-seconds of reading the bytes of image and view, wherever they lie."""
    start = time.process_time()
    for row in order:
        shard.raw(row)
    return time.process_time() - start


def read_peer(folder: Path) -> float:
    """CPU-seconds of webdataset's reader over its own shard, once, in file order, without decoding."""
    start = time.process_time()
    for sample in webdataset.WebDataset(str(folder / "theirs.tar"), shardshuffle=False):
        assert sample["jpg"]
    return time.process_time() - start


def read_decoded(shard: ImageShard, order: Sequence[int]) -> float:
    """CPU-seconds of reading samples, their views parsed, and decoding the pictures."""
    start = time.process_time()
    for row in order:
        decode(shard.read(row).data)
    return time.process_time() - start


def decode_all(images: Sequence[bytes]) -> float:
    """CPU-seconds of decoding pictures that are in memory already."""
    start = time.process_time()
    for data in images:
        decode(data)
    return time.process_time() - start


def decode(data: bytes) -> None:
    """Every pixel of a JPEG, with Pillow."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()


if __name__ == "__main__":
    main()
