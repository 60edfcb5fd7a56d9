"""The pictures that a checkpoint draws of a benchmark's prompts, kept as a dataset (DESIGN section 3).

    OUT/BENCHMARK-KEY8/    images and groups `source`, `prompt` and `prompt.telemetry`, a row for each picture

Seeds are keyed by (seed, benchmark, item, number), so that a picture depends on no other. Each batch is on disk before
it is written down in the journal: after a kill only those that were under way are drawn again.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from harmon.evaluation.asked import TERMS, OnProgress, provenance
from harmon.evaluation.crew import ALONE, Crew, at_work
from harmon.evaluation.question import Prompt
from harmon.evaluation.subject import Subject
from harmon.generate import draw_pictures
from harmon.picture_files import Dtype, PictureRecord, png_of
from harmon.sampling_config import SamplingConfig
from harmon.seeds import stream
from pipelines.canonical import canonical_json, sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.shards import ImageShard
from pipelines.steps import Journal, Step, StepRun

STEP, VERSION = "benchmark-pictures", 1
PROMPT = "prompt"
SHARD = 500  # pictures

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("item", pa.string()),  # the prompt's id, by which the official evaluation names files
        ("number", pa.int32()),  # of the prompt's pictures
        ("images", pa.int32()),  # that the prompt has
        ("prompt", pa.string()),
        ("seed", pa.string()),
        ("facts", pa.string()),  # JSON
        ("record", pa.string()),  # JSON: what the examiner needs
    ]
)
TELEMETRY = pa.schema([("key", pa.string()), ("seconds", pa.float64()), ("host", pa.string())])


@dataclass(frozen=True)
class Wanted:
    """One picture to draw."""

    prompt: Prompt
    number: int
    seed: int

    @property
    def row_id(self) -> str:
        """Its name within the benchmark."""
        return f"{self.prompt.id}/{self.number:04}"


@dataclass(frozen=True)
class Drawn:
    """One picture as a worker hands it over."""

    png: bytes
    seconds: float
    host: str


@dataclass(frozen=True)
class DrawnPicture:
    """One picture of a dataset of drawings, read when it is wanted."""

    root: str
    """Of the dataset."""
    shard: int
    sample: str
    """Its key in the dataset."""
    prompt: Prompt
    number: int

    @property
    def key(self) -> str:
        """Its name within the benchmark, the same in every run of the same prompts."""
        return f"{self.prompt.id}/{self.number:04}"

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"{self.root}, picture {self.key}"

    def read(self) -> bytes:
        """The PNG. Raises HarmonError where the dataset has it no longer."""
        image = opened(self.root, self.shard).find(self.sample)
        if image is None:
            raise HarmonError(f"{self.where} is not in its shard; run `harmon audit {self.root} --deep`.")
        return image.data


@lru_cache(maxsize=4)
def opened(root: str, shard: int) -> ImageShard:
    """The pictures of one shard, mapped once."""
    return Dataset(root).images(shard)


def drawing(subject: Subject, prompts: Sequence[Prompt], px: int, sampling: SamplingConfig, seed: int) -> Step:
    """The step that draws every picture of `prompts`, of `px` pixels a side."""
    items = [[one.id, one.text, one.images, dict(one.facts), dict(one.record)] for one in prompts]
    configuration = {
        "benchmark": prompts[0].benchmark,
        "prompts": len(prompts),
        "prompts_sha256": sha256_hex(canonical_json(items)),
        "checkpoint": {"weights": subject.identity.weights, "dtype": subject.dtype, "px": px},
        "sampling": sampling.model_dump(mode="json"),
        "seed": seed,
    }
    return Step(STEP, VERSION, configuration)


def draw(
    subject: Subject,
    prompts: Sequence[Prompt],
    out: Path,
    px: int,
    sampling: SamplingConfig,
    seed: int = 0,
    crew: Crew = ALONE,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """The pictures of `prompts` as a dataset below `out`; what stands there already is not drawn again.

    Raises:
        ConfigurationError: the checkpoint cannot be opened, or cannot draw at that size.
        HarmonError: a worker died again and again, or another process draws the same.
    """
    step = drawing(subject, prompts, px, sampling, seed)
    benchmark = prompts[0].benchmark
    dataset = Dataset(out / f"{benchmark}-{step.key8}")
    run = StepRun(dataset, step)
    if run.committed:
        return dataset
    wanted = [
        Wanted(one, number, stream(seed, benchmark, one.id, number)) for one in prompts for number in range(one.images)
    ]
    shards = [wanted[start : start + SHARD] for start in range(0, len(wanted), SHARD)]
    with at_work(crew, PainterOf(subject, subject.identity.weights, px, sampling)) as work:
        for number in run.pending(range(len(shards))):
            journal = run.journal(number)
            kept = _Kept(journal)
            before = number * SHARD
            for some, pictures in work(_batches([one for one in shards[number] if one not in kept], crew.batch)):
                kept.keep(some, pictures)
                if on_progress:
                    on_progress(before + len(kept), len(wanted))
            _write(run, number, shards[number], kept)
    run.commit({benchmark: TERMS}, {"checkpoint": provenance(subject)})
    return dataset


def drawn_pictures(dataset: Dataset, shard: int) -> list[DrawnPicture]:
    """The pictures of one shard, in the order in which the prompts were published."""
    root = str(dataset.root)
    benchmark: str = dataset.commits()[0].configuration["benchmark"]
    found = []
    for row in dataset.table(PROMPT, shard).to_pylist():
        facts, record = json.loads(row["facts"]), json.loads(row["record"])
        prompt = Prompt(benchmark, row["item"], row["prompt"], row["images"], facts, record)
        found.append(DrawnPicture(root, shard, row["key"], prompt, row["number"]))
    return found


@dataclass(frozen=True)
class PainterOf:
    """Makes a Painter in whichever process calls it."""

    subject: Subject
    weights: str
    px: int
    sampling: SamplingConfig

    def __call__(self) -> Painter:
        return Painter(self)


class Painter:
    """One copy of the model, which draws batches of pictures."""

    def __init__(self, made: PainterOf) -> None:
        self._made = made
        self._trained = made.subject.open(made.weights)

    def work(self, items: Sequence[Wanted]) -> list[Drawn]:
        """The picture of each prompt, as a PNG that says how to draw it again."""
        began = time.perf_counter()
        made = self._made
        prompts, seeds = [one.prompt.text for one in items], [one.seed for one in items]
        pixels = draw_pictures(self._trained, prompts, seeds, made.sampling, made.px, batch=len(items))
        dtype: Dtype = "bfloat16" if made.subject.dtype == "bfloat16" else "float32"
        records = [
            PictureRecord(
                prompt=prompt,
                seed=seed,
                width=made.px,
                height=made.px,
                sampling=made.sampling,
                weights=made.weights,
                dtype=dtype,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        pngs = [png_of(picture, record) for picture, record in zip(pixels, records, strict=True)]
        seconds, host = (time.perf_counter() - began) / len(items), socket.gethostname()
        return [Drawn(png, seconds, host) for png in pngs]


class _Kept:
    """The pictures of one shard that are on disk: beside the journal until the shard is written."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._folder = journal.path.parent / "drawn"
        self._folder.mkdir(exist_ok=True)
        self._lines = {line["row_id"]: line for line in journal.entries()}

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, wanted: Wanted) -> bool:
        return wanted.row_id in self._lines

    def keep(self, some: Sequence[Wanted], pictures: Sequence[Drawn]) -> None:
        """The bytes, and then a line of the journal for each."""
        lines = []
        for wanted, drawn in zip(some, pictures, strict=True):
            name = f"{sha256_hex(drawn.png)}.png"
            with (self._folder / name).open("wb") as stream:
                stream.write(drawn.png)
                stream.flush()
                os.fsync(stream.fileno())
            lines.append({"row_id": wanted.row_id, "file": name, "seconds": drawn.seconds, "host": drawn.host})
        self._journal.append(*lines)
        self._lines |= {line["row_id"]: line for line in lines}

    def line(self, wanted: Wanted) -> Mapping[str, Any]:
        """What is written down of one picture."""
        return self._lines[wanted.row_id]

    def png(self, wanted: Wanted) -> bytes:
        """Its bytes."""
        name: str = self._lines[wanted.row_id]["file"]
        return (self._folder / name).read_bytes()


def _batches(wanted: Sequence[Wanted], size: int) -> Iterator[Sequence[Wanted]]:
    for start in range(0, len(wanted), size):
        yield wanted[start : start + size]


def _write(run: StepRun, number: int, wanted: Sequence[Wanted], kept: _Kept) -> None:
    px: int = run.step.configuration["checkpoint"]["px"]
    output = run.shard(number)
    images = output.images()
    source, prompts, telemetry = [], [], []
    for one in wanted:
        prompt, png = one.prompt, kept.png(one)
        key = sample_key(prompt.benchmark, one.row_id)
        images.add(key, png, "png", {"key": key, "caption": prompt.text})
        empty: dict[str, Any] = dict.fromkeys(SOURCE_SCHEMA.names)
        named = {"key": key, "source": prompt.benchmark, "row_id": one.row_id, "task": "text2image", "ext": "png"}
        size = {"width": px, "height": px, "bytes": len(png), "sha256": sha256_hex(png), "caption": prompt.text}
        source.append(empty | named | size)
        prompts.append(
            {
                "key": key,
                "item": prompt.id,
                "number": one.number,
                "images": prompt.images,
                "prompt": prompt.text,
                "seed": str(one.seed),
                "facts": json.dumps(dict(prompt.facts), ensure_ascii=False),
                "record": json.dumps(dict(prompt.record), ensure_ascii=False),
            }
        )
        line = kept.line(one)
        telemetry.append({"key": key, "seconds": line["seconds"], "host": line["host"]})
    output.columns("source", pa.Table.from_pylist(source, SOURCE_SCHEMA))
    output.columns(PROMPT, pa.Table.from_pylist(prompts, SCHEMA))
    output.columns(f"{PROMPT}.telemetry", pa.Table.from_pylist(telemetry, TELEMETRY))
    output.finish(rows_in=len(wanted))
