"""Writing and reading shards against webdataset, on the same images in one run, per CPU-second.

python -m benchmarks.dataset_io
"""

import io
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from pipelines.canonical import sample_key
from pipelines.shards import ImageShard, ShardWriter

IMAGES = 2000
READS = 20_000


def main() -> None:
    """Print images per CPU-second and the ratio to webdataset for writing, and for reading in random order."""
    images = _images()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.tar", Path(folder) / "theirs.tar"
        written = _rate(IMAGES, lambda: _write(ours, images))
        peer = _rate(IMAGES, lambda: _write_webdataset(theirs, images))
        print(f"write, index and sha256 included: {written:,.0f} images/CPU-s, {written / peer:.1f}x webdataset's")
        read = _rate(READS, lambda: _read_randomly(ours))
        peer = _rate(IMAGES, lambda: _read_webdataset(theirs))
        print(f"read raw bytes in random order: {read:,.0f} images/CPU-s, {read / peer:.1f}x webdataset in file order")


def _images() -> list[tuple[str, bytes]]:
    """Noise as JPEG, about 100 KB each, so that the bytes are like photographs'."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(20):
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (280, 420, 3), np.uint8)).save(out, "JPEG", quality=85)
        made.append(out.getvalue())
    return [(sample_key("benchmark", str(i)), made[i % len(made)]) for i in range(IMAGES)]


def _write(path: Path, images: list[tuple[str, bytes]]) -> None:
    with ShardWriter(path) as shard:
        for key, data in images:
            shard.add(key, data, "jpg", {"key": key})


def _write_webdataset(path: Path, images: list[tuple[str, bytes]]) -> None:
    with webdataset.TarWriter(str(path)) as shard:
        for key, data in images:
            shard.write({"__key__": key, "jpg": data, "json": {"key": key}})


def _read_randomly(path: Path) -> None:
    shard = ImageShard(path, path.with_suffix(".tar.idx"))
    draw = random.Random(0)
    for _ in range(READS):
        shard.read(draw.randrange(IMAGES))


def _read_webdataset(path: Path) -> None:
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        assert sample["jpg"]


def _rate(count: int, work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


if __name__ == "__main__":
    main()
