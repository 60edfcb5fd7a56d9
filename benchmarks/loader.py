"""The training loader against webdataset with torch's DataLoader, on the same shards in one run, per CPU-second.

python -m benchmarks.loader [--quick]

Both give shuffled batches of 256 px squares from JPEG photographs of 1,024 x 1,536 pixels, decoded in processes of
their own; CPU-seconds are those of this process and of its children. The peer decodes whole pictures, as a webdataset
pipeline does with PIL; ours may decode at half the side or less (`draft`), and is measured without that too. `bare` is
the same decoding and resizing of bytes in memory, in one process. Paths alternate and medians are printed.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import webdataset
from PIL import Image

from benchmarks.pictures import make_pictures, make_view
from harmon.pixels import square_pixels
from harmon.training.decoding import Decoder, Wanted, decode
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.rows import StageRows
from harmon.training.stage import StageConfig, load_stage
from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

PX, WORKERS, ROWS_PER_SHARD = 256, 2, 250
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
        far_resume(dataset, stage)


def measure(dataset: Dataset, stage: StageConfig, count: int, rounds: int) -> None:
    """The comparisons over `count` samples."""
    paths: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(dataset, stage, count, draft=True),
        "ours, whole pictures": lambda: ours(dataset, stage, count, draft=False),
        "webdataset and torch DataLoader": lambda: peer(dataset, count),
        "bare": lambda: bare(dataset, stage, count),
    }
    seconds = {name: [0.0] * rounds for name in paths}
    for number in range(rounds):
        for name, path in paths.items():
            seconds[name][number] = path()
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {count / median:,.0f} samples/CPU-s")
    ratio = medians["webdataset and torch DataLoader"] / medians["ours"]
    print(f"ours is {ratio:.2f}x webdataset and torch DataLoader (goal {GOALS['peer']:g}x)")
    print(f"ours is {medians['bare'] / medians['ours']:.2f} of bare decoding and resizing (goal {GOALS['bare']:g})")


def ours(dataset: Dataset, stage: StageConfig, count: int, draft: bool) -> float:
    """CPU-seconds of the training loader, its start left out as with the peer."""
    rows = StageRows(stage, mixture(dataset), None)
    decoder = Decoder(WORKERS)
    for future in [future for _ in range(WORKERS) for future in decoder.ask(wanted(rows, range(8), draft))]:
        future.result()
    begun = cpu_seconds(decoder_pids(decoder))
    asked = [decoder.ask(wanted(rows, range(start, start + 64), draft)) for start in range(0, count, 64)]
    for futures in asked:
        batch = np.stack([pixels for future in futures for pixels in future.result()])
        assert batch.shape[1:] == (PX, PX, 3)
    spent = cpu_seconds(decoder_pids(decoder)) - begun
    decoder.close()
    return spent


def bare(dataset: Dataset, stage: StageConfig, count: int) -> float:
    """CPU-seconds of the same decoding in this process alone."""
    asked = wanted(StageRows(stage, mixture(dataset), None), range(count), True)
    decode(asked[:8])
    begun = time.process_time()
    decode(asked)
    return time.process_time() - begun


def peer(dataset: Dataset, count: int) -> float:
    """CPU-seconds of webdataset's pipeline in torch's DataLoader over one epoch; its processes are forks, which start
    with none.
    """
    tars = [dataset.images(shard).where for shard in dataset.shard_numbers]
    pipeline = (
        webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
        .shuffle(1000)
        .decode("pil")
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


def far_resume(dataset: Dataset, stage: StageConfig) -> None:
    """How long opening the rows and finding sample 100,000,000 takes."""
    begun = time.perf_counter()
    StageRows(stage, mixture(dataset), None).row("text2image", FAR)
    print(f"the sample at position {FAR:,}: {time.perf_counter() - begun:.2f} s (goal under {GOALS['resume']:g} s)")


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


if __name__ == "__main__":
    main()
