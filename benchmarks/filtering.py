"""Filtering against its peers, on the same 2,000 JPEGs in one run, per CPU-second.

python -m benchmarks.filtering [--quick]

- size and aspect from headers, from shards to a verdict on every row, against Data-Juicer 1.6.1's image_size_filter and
  image_aspect_ratio_filter (`make data-juicer` makes its environment; without it that line is left out);
- decoding and preprocessing for CLIP against bare decoding and resizing by the fastest library found (OpenCV where
  `make img2dataset` has brought it), for the exact resizer and the fast one;
- the share of time that a simulated accelerator of 400 images/s is busy when one thread decodes for it.

Exit status: 0, or 1 where a goal is missed; a goal that could not be measured is named.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import skimage
import torch
from PIL import Image

from filtering.embedding import BATCH
from filtering.feed import batches
from filtering.geometry import Geometry
from filtering.header import read_header, write_headers
from filtering.plan import plan
from filtering.preprocess import Resizer, normalised, pixels
from filtering.rules import Threshold
from filtering.selection import Selection
from pipelines.canonical import sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA, conform
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

ROOT = Path(__file__).parents[1]
PEER = ROOT / ".venv-data-juicer/bin/python"
OPENCV = ROOT / ".venv-img2dataset/bin/python"
SIZE = (816, 612)  # half a megapixel
SIDE = 224
ACCELERATOR = 400.0  # images a second
GOALS = {"peer": 200.0, "rate": 20_000.0, "preprocess": 0.90, "busy": 0.95}
"""Times Data-Juicer; images/CPU-s from headers; of the fastest library; share of time."""
OPENCV_SCRIPT = """
import json, sys, time
from pathlib import Path
import cv2
import numpy as np
cv2.setNumThreads(1)
files = [np.fromfile(path, np.uint8) for path in sorted(Path(sys.argv[1]).iterdir())]
size, start = (int(sys.argv[2]), int(sys.argv[3])), time.process_time()
for data in files:
    cv2.resize(cv2.imdecode(data, cv2.IMREAD_COLOR), size, interpolation=cv2.INTER_AREA)
print(json.dumps(time.process_time() - start))
"""


def main() -> None:
    """Print rates, ratios and goals, and end with the verdict."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="200 images, fewer rounds, no Data-Juicer")
    quick = options.parse_args().quick
    count, rounds = (200, 3) if quick else (2000, 5)
    torch.set_num_threads(1)
    images = make_images(count)
    print(f"{count} JPEG photographs of {SIZE[0]} x {SIZE[1]}, {np.mean([len(one) for one in images]) / 1e3:.0f} KB")
    with tempfile.TemporaryDirectory(prefix="filtering-") as name:
        measured = headers(Path(name), images, rounds, peer=not quick)
        measured |= preprocessing(Path(name), images[:200], rounds)
    sys.exit(verdict(measured | feeding(images)))


def verdict(measured: Mapping[str, float]) -> int:
    """Exit status: 1 where a goal is missed; each of those is printed, and each that was not measured."""
    for name in GOALS:
        if name not in measured:
            print(f"not measured: {name} (goal {GOALS[name]:g})")
    missed = [name for name, value in measured.items() if value < GOALS[name]]
    for name in missed:
        print(f"missed: {name} {measured[name]:,.4g} (goal {GOALS[name]:g})")
    return 1 if missed else 0


def make_images(count: int) -> list[bytes]:
    """JPEGs of about 100 KB: photographs that scikit-image carries, repeated; each is its own bytes."""
    made = []
    for path in sorted((Path(skimage.__file__).parent / "data").glob("*.[pj][np]g")):
        with Image.open(path) as image:
            if min(image.size) >= 300 and image.mode == "RGB":
                out = io.BytesIO()
                image.resize(SIZE, Image.Resampling.LANCZOS).save(out, "JPEG", quality=90)
                made.append(out.getvalue())
    # two bytes behind the end marker set copies apart and are read by no decoder
    return [made[n % len(made)] + (n // len(made)).to_bytes(2, "big") for n in range(count)]


def headers(folder: Path, images: Sequence[bytes], rounds: int, peer: bool) -> dict[str, float]:
    """From shards to the verdict on every row, once; then the header alone. The rates that have goals."""
    seconds = []
    rules = Selection(
        geometry=Geometry(min_side=200, max_aspect=3.0),
        thresholds=(Threshold(group="header", column="aspect", at_most=3.0),),
    )
    for number in range(rounds):
        dataset = write_dataset(folder / f"{number}" / "photographs", images)
        start = time.process_time()
        write_headers(dataset)
        made = plan([dataset], rules)
        seconds.append(time.process_time() - start)
        assert made.kept == len(images), made.lines()
    ours = len(images) / statistics.median(seconds)
    print(f"header column and verdict, from shards: {ours:,.0f} images/CPU-s (goal {GOALS['rate']:,.0f})")
    alone = cpu(lambda: [read_header(data) for data in images], rounds)
    print(f"  of which the header itself: {len(images) / alone:,.0f} images/CPU-s")
    if not peer or not PEER.exists():
        print("Data-Juicer: left out" + ("" if not peer else "; `make data-juicer` makes its environment"))
        return {"rate": ours}
    files = as_files(folder / "files", images)
    listed = folder / "files.txt"
    listed.write_text("\n".join(str(path) for path in sorted(files.iterdir())))
    done = subprocess.run(
        [str(PEER), "-I", str(ROOT / "infra/data-juicer/filters.py"), str(listed)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kept"] == len(images)
    theirs = told["images"] / told["seconds"]
    print(
        f"  {ours / theirs:,.0f}x Data-Juicer 1.6.1's two filters, {theirs:,.0f} images/CPU-s (goal {GOALS['peer']:g}x)"
    )
    return {"rate": ours, "peer": ours / theirs}


def as_files(folder: Path, images: Sequence[bytes]) -> Path:
    """The images in a folder, as other programs read them."""
    folder.mkdir()
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)
    return folder


def preprocessing(folder: Path, images: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Decode and preprocess against bare decode and resize, alternating; each resizer against the same one bare. The
    goal is for what goes to the device, by the faster resizer, of the fastest library."""
    bare: dict[str, Callable[[bytes], object]] = {
        "simplejpeg and Pillow": lambda data: Image.fromarray(simplejpeg.decode_jpeg(data)).resize(
            _size(), Image.Resampling.BICUBIC
        ),
        "simplejpeg and torch": lambda data: _torch_resized(simplejpeg.decode_jpeg(data)),
        "Pillow": lambda data: _pillow(data).resize(_size(), Image.Resampling.BICUBIC),
    }
    resizers: tuple[tuple[Resizer, str], ...] = (("pillow", "simplejpeg and Pillow"), ("torch", "simplejpeg and torch"))
    ways = [(resizer, like, here) for resizer, like in resizers for here in (False, True)]
    if OPENCV.exists():
        files = as_files(folder / "decoded", images)
        bare["OpenCV"] = lambda data: None  # measured in an environment of its own
    else:
        print("OpenCV: left out; `make img2dataset` makes the environment that has it")
    seconds: dict[str, list[float]] = {name: [] for name in bare}
    ours: dict[tuple[str, bool], list[float]] = {(resizer, here): [] for resizer, _, here in ways}
    for _ in range(rounds):
        for name, peer in bare.items():
            own = opencv(files) if name == "OpenCV" else cpu(lambda peer=peer: [peer(data) for data in images], 1)  # type: ignore[misc]
            seconds[name].append(own)
        for resizer, _, here in ways:
            ours[resizer, here].append(cpu(partial(_for_clip, images, resizer, here), 1))
    for name in bare:
        rate = len(images) / statistics.median(seconds[name])
        print(f"bare decode and resize, {name}: {rate:,.0f} images/CPU-s")
    fastest = min(bare, key=lambda name: statistics.median(seconds[name]))
    found = 0.0
    for resizer, like, here in ways:
        rate = len(images) / statistics.median(ours[resizer, here])
        share = statistics.median(a / b for a, b in zip(seconds[like], ours[resizer, here], strict=True))
        of_all = statistics.median(a / b for a, b in zip(seconds[fastest], ours[resizer, here], strict=True))
        print(
            f"for CLIP, resizer {resizer}, {'with normalising' if here else 'uint8 for the device'}: "
            f"{rate:,.0f} images/CPU-s, {share:.2f} of {like}, "
            f"{of_all:.2f} of the fastest, {fastest} (goal {GOALS['preprocess']:g})"
        )
        found = found if here else max(found, of_all)
    return {"preprocess": found}


def opencv(files: Path) -> float:
    """CPU-seconds of OpenCV's bare decode and resize (area averages, as img2dataset has it)."""
    command = [str(OPENCV), "-I", "-c", OPENCV_SCRIPT, str(files), *map(str, _size())]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def feeding(images: Sequence[bytes]) -> dict[str, float]:
    """Batches go through the actor's own feed to an accelerator that takes 1/400 s an image, during which this thread
    sleeps as it would beside a real one, and one thread decodes.

    The clock is the wall's, from the first batch on: whatever keeps the accelerator waiting counts, other programs on
    the machine too. The goal is for the faster resizer.
    """
    found = {}
    resizers: tuple[Resizer, ...] = ("torch", "pillow")
    for resizer in resizers:
        fed = ((str(number), data) for number, data in enumerate(images))
        began, busy = 0.0, 0.0
        for batch in batches(fed, partial(pixels, side=SIDE, resizer=resizer), BATCH, threads=1):
            start = time.perf_counter()
            began = began or start  # the accelerator starts with its first batch
            time.sleep(len(batch.keys) / ACCELERATOR)
            busy += len(batch.keys) / ACCELERATOR
        found[resizer] = busy / (time.perf_counter() - began)
        print(
            f"simulated accelerator of {ACCELERATOR:g} images/s, one decoding thread, resizer {resizer}: "
            f"{100 * found[resizer]:.1f}% busy (goal {100 * GOALS['busy']:g}%)"
        )
    return {"busy": found["torch"]}


def write_dataset(root: Path, images: Sequence[bytes]) -> Dataset:
    """The images as one shard."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {}))
    output = run.shard(0)
    rows = []
    for number, data in enumerate(images):
        key = sample_key(dataset.name, str(number))
        output.images().add(key, data, "jpg", {})
        row = {"key": key, "source": dataset.name, "row_id": str(number), "task": "image2text", "ext": "jpg"}
        rows.append(row | {"width": SIZE[0], "height": SIZE[1], "sha256": sha256_hex(data), "caption": "a photograph"})
    output.columns("source", _table(rows))
    output.finish(len(rows))
    run.pending([0])
    run.commit()
    return dataset


def _table(rows: Sequence[dict[str, object]]):  # type: ignore[no-untyped-def]  # pyarrow has no types
    import pyarrow as pa

    return conform(pa.Table.from_pylist(list(rows), SOURCE_SCHEMA), SOURCE_SCHEMA, "the benchmark's source")


def cpu(work: Callable[[], object], rounds: int) -> float:
    """Median CPU-seconds of `work`."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def _for_clip(images: Sequence[bytes], resizer: Resizer, here: bool) -> None:
    """What decoding threads do for the model; `here`: mean and deviation too, which else its device does."""
    for data in images:
        picture = pixels(data, SIDE, resizer)
        if here:
            normalised(torch.tensor(picture)[None])


def _size() -> tuple[int, int]:
    return int(SIDE * SIZE[0] / SIZE[1]), SIDE


def _torch_resized(picture: np.ndarray) -> torch.Tensor:
    planes = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(planes, size=_size()[::-1], mode="bicubic", antialias=True)


def _pillow(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


if __name__ == "__main__":
    main()
