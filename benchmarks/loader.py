"""The training loader against webdataset with torch's DataLoader, on the same shards in one run, per CPU-second.

python -m benchmarks.loader [--quick]

Both give shuffled batches of 256 px squares from JPEG photographs of 1,024 x 1,536 pixels, decoded in processes of
their own; CPU-seconds are those of this process and of its children. Two settings are compared, each with itself: whole
pictures are decoded, or large ones at half the side or less (`draft`, the trainer's default). `webdataset as it is` is
the peer without that, since its own PIL decoding has no such setting. `bare` is the same decoding and resizing in one
process that does nothing else. Paths alternate and medians are printed.

The far resume opens the rows of a million samples in a thousand shards, once as a stage's first start does and once as
every later start, and looks up one sample.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import webdataset
from PIL import Image

from benchmarks.pictures import CAPTION, make_pictures, make_view
from harmon.pixels import square_pixels
from harmon.training.decoding import Decoder, Wanted, decode, reduce_jpeg
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.rows import StageRows
from harmon.training.stage import StageConfig, load_stage
from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

PX, WORKERS, ROWS_PER_SHARD = 256, 2, 250
FAR_SHARDS, FAR_ROWS = 1000, 1000
GOALS = {"peer": 2.0, "bare": 0.9, "resume": 1.0}
FAR = 100_000_000


def main() -> None:
    """Print samples per CPU-second of each path, the ratios to the goals, and how long a far resume takes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    quick = options.parse_args().quick
    count, rounds = (500, 1) if quick else (2000, 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "photographs", count)
        stage = load_stage("stage1", {"ratio": {"image2text": 0}, "block_rows": 64, "global_batch": 64})
        measure(dataset, stage, count, rounds)
        far_resume(Path(folder), stage, FAR_SHARDS // (10 if quick else 1))


def measure(dataset: Dataset, stage: StageConfig, count: int, rounds: int) -> None:
    """The comparisons over `count` samples."""
    paths: dict[tuple[str, bool], Callable[[], float]] = {}
    for draft in (False, True):
        paths["ours", draft] = partial(ours, dataset, stage, count, draft)
        paths["peer", draft] = partial(peer, dataset, count, draft)
        paths["bare", draft] = partial(bare, dataset, stage, count, draft)
    seconds: dict[tuple[str, bool], list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            seconds[name].append(path())
    took = {name: statistics.median(found) for name, found in seconds.items()}
    for draft, setting in ((False, "whole pictures"), (True, "draft")):
        mine, others, least = (took[name, draft] for name in ("ours", "peer", "bare"))
        told = f"ours {count / mine:,.0f}, peer {count / others:,.0f}, bare {count / least:,.0f}"
        print(f"{setting}, samples/CPU-s: {told}")
        print(f"    {others / mine:.2f}x webdataset and torch DataLoader with the same setting")
        print(f"    {least / mine:.2f} of bare decoding and resizing (goal {GOALS['bare']:g})")
    as_it_is = took["peer", False] / took["ours", True]
    print(f"ours with draft is {as_it_is:.2f}x webdataset as it is (goal {GOALS['peer']:g}x)")


def ours(dataset: Dataset, stage: StageConfig, count: int, draft: bool) -> float:
    """CPU-seconds of the training loader, its start left out as with the peer."""
    rows = StageRows(stage, mixture(dataset), None)
    decoder = Decoder(WORKERS)
    for first in [first for _ in range(WORKERS) for first in decoder.ask(wanted(rows, range(8), draft))]:
        first.result()
    begun = cpu_seconds(decoder_pids(decoder))
    asked = [decoder.ask(wanted(rows, range(start, start + 64), draft)) for start in range(0, count, 64)]
    for chunks in asked:
        batch = np.stack([pixels for chunk in chunks for pixels in chunk.result()])  # type: ignore[misc]
        assert batch.shape[1:] == (PX, PX, 3)
    spent = cpu_seconds(decoder_pids(decoder)) - begun
    decoder.close()
    rows.close()
    return spent


def bare(dataset: Dataset, stage: StageConfig, count: int, draft: bool) -> float:
    """CPU-seconds of the same decoding in this process alone."""
    asked = wanted(StageRows(stage, mixture(dataset), None), range(count), draft)
    decode(asked[:8])
    begun = time.process_time()
    decode(asked)
    return time.process_time() - begun


def peer(dataset: Dataset, count: int, draft: bool) -> float:
    """CPU-seconds of webdataset's pipeline in torch's DataLoader over one epoch; its processes are forks, which start
    with none.
    """
    tars = [dataset.images(shard).where for shard in dataset.shard_numbers]
    pipeline = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
        .shuffle(1000)
        .decode(_drafted if draft else "pil")
        .to_tuple("jpg")
        .map_tuple(_square)
    )
    loader: Any = torch.utils.data.DataLoader(pipeline, batch_size=64, num_workers=WORKERS)
    begun, seen, spent = time.process_time(), 0, 0.0
    batches: Any = iter(loader)
    pids = [worker.pid for worker in batches._workers]
    for (batch,) in batches:
        seen += len(batch)
        spent = cpu_seconds(pids) - begun  # before the processes are gone
    assert seen == count
    return spent


def _square(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(square_pixels(picture, PX).copy())


def _drafted(key: str, data: bytes) -> Image.Image | None:
    """webdataset's PIL decoder with the trainer's draft."""
    if not key.endswith("jpg"):
        return None
    with Image.open(io.BytesIO(data)) as picture:
        reduce_jpeg(picture, PX)
        return picture.convert("RGB")


def far_resume(folder: Path, stage: StageConfig, shards: int) -> None:
    """How long opening the rows and finding sample 100,000,000 takes, at a stage's first start and at later ones."""
    dataset = make_rows(folder / "rows", shards)
    for start in ("first", "later"):
        begun = time.perf_counter()
        rows = StageRows(stage, mixture(dataset), None, folder / "kept")
        rows.row("text2image", FAR)
        took = time.perf_counter() - begun
        print(f"the sample at position {FAR:,}, {start} start: {took:.2f} s (goal under {GOALS['resume']:g} s)")
        rows.close()


def wanted(rows: StageRows, numbers: range, draft: bool) -> list[Wanted]:
    """The centre squares of the text-to-image samples `numbers`."""
    places = [rows.row("text2image", number).place for number in numbers]
    return [Wanted(one.dataset, one.shard, one.key, PX, padded=False, draft=draft) for one in places]


def mixture(dataset: Dataset) -> Mixture:
    return Mixture(text2image=(MixtureSource(dataset=str(dataset.root), rows="text2image", text="caption"),))


def decoder_pids(decoder: Decoder) -> list[int]:
    assert decoder._pool is not None
    return list(decoder._pool._processes)


def cpu_seconds(pids: list[int]) -> float:
    """CPU-seconds so far of this process and of `pids`."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / ticks


def make_dataset(folder: Path, count: int) -> Dataset:
    """`count` rows over twenty different photographs."""
    pictures, dataset = make_pictures(20, 1024, 1536, 5.0), Dataset(folder)
    run = StepRun(dataset, Step("make", 1, {"count": count}))
    for shard in run.pending(range(-(-count // ROWS_PER_SHARD))):
        output, rows = run.shard(shard), []
        for number in range(shard * ROWS_PER_SHARD, min(count, (shard + 1) * ROWS_PER_SHARD)):
            key = sample_key("bench", str(number))
            output.images().add(key, pictures[number % len(pictures)], "jpg", make_view(key, number, 1024, 1536))
            said = {"key": key, "source": "bench", "row_id": str(number), "task": "text2image", "ext": "jpg"}
            rows.append(dict.fromkeys(SOURCE_SCHEMA.names) | said | {"caption": f"photograph {number}"})
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(rows))
    run.commit()
    return dataset


def make_rows(folder: Path, shards: int) -> Dataset:
    """A dataset of captions alone, which says that it has pictures: opening rows looks at none."""
    dataset = Dataset(folder)
    run = StepRun(dataset, Step("make", 1, {"shards": shards}))
    for shard in run.pending(range(shards)):
        output, numbers = run.shard(shard), range(shard * FAR_ROWS, (shard + 1) * FAR_ROWS)
        said = {"source": "bench", "task": "text2image", "ext": "jpg", "caption": CAPTION}
        rows = [
            dict.fromkeys(SOURCE_SCHEMA.names) | said | {"key": f"{number:032x}", "row_id": str(number)}
            for number in numbers
        ]
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(rows))
    run.commit()
    return dataset


if __name__ == "__main__":
    main()
