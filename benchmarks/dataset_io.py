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

import numpy as np
import webdataset
from PIL import Image

from pipelines.canonical import sample_key
from pipelines.shards import ImageShard, ShardWriter, index_path

GOALS = {"write": 2.5, "read": 15.0, "decode": 0.95}
Images = Sequence[tuple[str, bytes]]


def main() -> None:
    """Print images per CPU-second and the ratio to the peer: writing, raw random reads, reads with decoding."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = options.parse_args().quick
    count, rounds = (300, 3) if quick else (2000, 7)
    images = make_images(count)
    mean = statistics.mean(len(data) for _, data in images)
    print(f"{count} JPEG images of {mean / 1e3:.0f} KB, medians of {rounds} alternating rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writing = compare(rounds, lambda: write(folder / "ours.tar", images), lambda: write_peer(folder, images))
        say("write, index and sha256 included", "write", count, writing, "webdataset's TarWriter")
        draw = random.Random(0)
        order = [draw.randrange(count) for _ in range(5 * count)]
        shard = ImageShard(folder / "ours.tar", index_path(folder / "ours.tar"))
        reading = compare(rounds, lambda: read_raw(shard, order), lambda: 5 * read_peer(folder))
        say("raw bytes in random order", "read", len(order), reading, "webdataset's reader in file order")
        some = order[: count // 4]
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


def make_images(count: int) -> Images:
    """Noise as JPEG, about 100 KB each, so that the bytes are like photographs'."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(20):
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (280, 420, 3), np.uint8)).save(out, "JPEG", quality=88)
        made.append(out.getvalue())
    return [(sample_key("benchmark", str(i)), made[i % len(made)]) for i in range(count)]


def write(path: Path, images: Images) -> float:
    """CPU-seconds of writing a shard with its index and checksums."""
    for old in (path, index_path(path)):
        old.unlink(missing_ok=True)
    start = time.process_time()
    with ShardWriter(path) as shard:
        for key, data in images:
            shard.add(key, data, "jpg", {"key": key})
    return time.process_time() - start


def write_peer(folder: Path, images: Images) -> float:
    """CPU-seconds of webdataset's writer, which makes neither index nor checksum."""
    path = folder / "theirs.tar"
    path.unlink(missing_ok=True)
    start = time.process_time()
    with webdataset.TarWriter(str(path)) as shard:
        for key, data in images:
            shard.write({"__key__": key, "jpg": data, "json": {"key": key}})
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
