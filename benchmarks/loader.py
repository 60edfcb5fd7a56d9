"""The training loader against webdataset with torch's DataLoader, on the same shards in one run, per CPU-second.

python -m benchmarks.loader [--quick]

All give shuffled batches of 256 px squares, uint8, from JPEG photographs of 1,024 x 1,536 pixels, decoded in processes
of their own; CPU-seconds are those of this process and of its children. Paths alternate and medians are printed.

- `ours` is the loader in three settings: `fast` has large JPEGs decoded at half the side or less (`draft`) and torch's
  resizer; `usual` is the default, `draft` and Pillow's resizer; `exact` has neither, and makes the very squares of
  Pillow alone.
- `peer` is webdataset as people write it: its own PIL decoding, then Resize and CenterCrop of torchvision.
- `same` is webdataset with our decoding and resizing in the setting of ours that it is beside: what is left is how
  samples are found and carried.
- `bare` is that decoding and resizing alone, in as many processes as the loader has, which hand nothing back.

The far resume opens the rows of a million samples in a thousand shards, once as a stage's first start does and once as
every later start, with the first rows that the probe and the text lengths take, and looks up one sample.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import webdataset
from torchvision.transforms import v2

from benchmarks.pictures import CAPTION, make_pictures, make_view
from harmon.training.decoding import Decoder
from harmon.training.first_rows import ROWS as FIRST_ROWS
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.rows import StageRows
from harmon.training.squares import Resizer, Wanted, decode, square
from harmon.training.stage import StageConfig, load_stage
from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

PX, WORKERS, ROWS_PER_SHARD = 256, 2, 250
BLOCK, AHEAD = 64, 2  # samples of a batch, and batches asked before they are wanted, as in training
FAR_SHARDS, FAR_ROWS = 1000, 1000
GOALS = {"peer": 2.0, "bare": 0.9, "resume": 1.0}
FAR = 100_000_000


class Setting(NamedTuple):
    """How pictures are decoded (`harmon.training.decoding.Decoding`)."""

    draft: bool
    resizer: Resizer


SETTINGS = {"fast": Setting(True, "torch"), "usual": Setting(True, "pillow"), "exact": Setting(False, "pillow")}


def main() -> None:
    """Print samples per CPU-second of each path, the ratios to the goals, and how long a far resume takes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer pictures and rounds")
    quick = options.parse_args().quick
    count, rounds = (256, 1) if quick else (1000, 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "photographs", count)
        stage = load_stage("stage1", {"ratio": {"image2text": 0}, "block_rows": 64, "global_batch": 64})
        measure(dataset, stage, count, rounds)
        far_resume(Path(folder), stage, FAR_SHARDS // (10 if quick else 1))


def measure(dataset: Dataset, stage: StageConfig, count: int, rounds: int) -> None:
    """The comparisons over `count` samples."""
    paths: dict[str, Callable[[], float]] = {"peer": partial(webdataset_loader, dataset, count, None)}
    for name, setting in SETTINGS.items():
        paths[f"ours {name}"] = partial(ours, dataset, stage, count, setting)
        paths[f"same {name}"] = partial(webdataset_loader, dataset, count, setting)
        paths[f"bare {name}"] = partial(bare, dataset, stage, count, setting)
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            seconds[name].append(path())
    took = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"webdataset as people write it: {count / took['peer']:,.0f} samples/CPU-s")
    for name in SETTINGS:
        mine, others, least = (took[f"{path} {name}"] for path in ("ours", "same", "bare"))
        told = f"ours {count / mine:,.0f}, webdataset {count / others:,.0f}, bare {count / least:,.0f}"
        print(f"{name}, samples/CPU-s: {told}")
        print(f"    {took['peer'] / mine:.2f}x webdataset as people write it (goal {GOALS['peer']:g}x)")
        print(f"    {others / mine:.2f}x webdataset with the same decoding")
        print(f"    {least / mine:.2f} of bare decoding and resizing (goal {GOALS['bare']:g})")


def ours(dataset: Dataset, stage: StageConfig, count: int, setting: Setting) -> float:
    """CPU-seconds of the training loader, its start left out as with the peer."""
    rows = StageRows(stage, mixture(dataset), None)
    decoder = warm(rows, setting)
    begun = cpu_seconds(decoder_pids(decoder))
    blocks = [range(start, min(count, start + BLOCK)) for start in range(0, count, BLOCK)]
    asked = deque(decoder.ask(wanted(rows, block, setting)) for block in blocks[:AHEAD])
    for number in range(len(blocks)):
        asked.extend(decoder.ask(wanted(rows, block, setting)) for block in blocks[number + AHEAD : number + AHEAD + 1])
        batch = np.stack([pixels for chunk in asked.popleft() for pixels in chunk.result()])  # type: ignore[misc]
        assert batch.shape == (len(blocks[number]), PX, PX, 3)
    spent = cpu_seconds(decoder_pids(decoder)) - begun
    decoder.close()
    rows.close()
    return spent


def bare(dataset: Dataset, stage: StageConfig, count: int, setting: Setting) -> float:
    """CPU-seconds of the same decoding alone, in as many processes, since two on one core slow each other down."""
    rows = StageRows(stage, mixture(dataset), None)
    decoder = warm(rows, setting)
    assert decoder._pool is not None
    shares = [wanted(rows, range(start, count, WORKERS), setting) for start in range(WORKERS)]
    spent = sum(decoder._pool.map(seconds_of, shares))
    decoder.close()
    rows.close()
    return spent


def seconds_of(share: list[Wanted]) -> float:
    """CPU-seconds in which this process decodes `share`."""
    begun = time.process_time()
    for one in share:
        decode([one])
    return time.process_time() - begun


def warm(rows: StageRows, setting: Setting) -> Decoder:
    """Processes that have all started and decoded already."""
    decoder = Decoder(WORKERS)
    assert decoder._pool is not None
    begun: set[int] = set()
    while len(begun) < WORKERS:
        begun |= set(decoder._pool.map(begin, [wanted(rows, range(8), setting)] * WORKERS))
    return decoder


def begin(first: list[Wanted]) -> int:
    """Decode the `first` pictures, and say which process did, after a moment in which another may ask for some."""
    decode(first)
    time.sleep(0.1)
    return os.getpid()


def webdataset_loader(dataset: Dataset, count: int, setting: Setting | None) -> float:
    """CPU-seconds of webdataset's pipeline in torch's DataLoader over one epoch; its processes are forks, which start
    with none. With a `setting` it decodes and resizes as ours does.
    """
    tars = [dataset.images(shard).where for shard in dataset.shard_numbers]
    pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False).shuffle(1000)
    if setting is None:
        usual = v2.Compose([v2.Resize(PX, v2.InterpolationMode.BICUBIC), v2.CenterCrop(PX), v2.PILToTensor()])
        pipeline = pipeline.decode("pil").to_tuple("jpg").map_tuple(usual)
    else:
        like_ours = Wanted("", 0, "", PX, padded=False, draft=setting.draft, resizer=setting.resizer)
        pipeline = pipeline.to_tuple("jpg").map_tuple(partial(_as_ours, wanted=like_ours))
    loader: Any = torch.utils.data.DataLoader(pipeline, batch_size=BLOCK, num_workers=WORKERS)
    begun, seen, spent = time.process_time(), 0, 0.0
    batches: Any = iter(loader)
    pids = [worker.pid for worker in batches._workers]
    for (batch,) in batches:
        assert batch.dtype == torch.uint8
        seen += len(batch)
        spent = cpu_seconds(pids) - begun  # before the processes are gone
    assert seen == count
    return spent


def _as_ours(data: bytes, wanted: Wanted) -> torch.Tensor:
    return torch.from_numpy(square(data, wanted).copy())


def far_resume(folder: Path, stage: StageConfig, shards: int) -> None:
    """How long opening the rows and finding sample 100,000,000 takes, at a stage's first start and at later ones."""
    dataset = make_rows(folder / "rows", shards)
    for start in ("first", "later"):
        begun = time.perf_counter()
        rows = StageRows(stage, mixture(dataset), None, folder / "kept")
        rows.keep_first()
        _ = [rows.row("text2image", number) for number in range(FIRST_ROWS)]
        rows.row("text2image", FAR)
        took = time.perf_counter() - begun
        print(f"the sample at position {FAR:,}, {start} start: {took:.2f} s (goal under {GOALS['resume']:g} s)")
        rows.close()


def wanted(rows: StageRows, numbers: range, setting: Setting) -> list[Wanted]:
    """The centre squares of the text-to-image samples `numbers`."""
    places = [rows.row("text2image", number).place for number in numbers]
    how = {"padded": False, "draft": setting.draft, "resizer": setting.resizer}
    return [Wanted(one.dataset, one.shard, one.key, PX, **how) for one in places]  # type: ignore[arg-type]


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
