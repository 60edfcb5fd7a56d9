"""One stage of one run: everything the loop needs, and the key of what it computes."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harmon.model.config import HarmonConfig
from harmon.training.decoding import Online
from harmon.training.execution import Execution, GuardConfig
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.stage import TASKS, StageConfig
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.disk import write_whole
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import Settings, parse
from pipelines.storage import file_sha256

VERSION = 3  # raised when the same job would give other weights
DONE, JOB, METRICS = "done.json", "job.json", "metrics.jsonl"
ROWS = "rows"  # folder of a stage: which rows serve it (harmon.training.eligible)
Notice = Literal["go on", "save", "stop"]  # what a worker hears of its machine: "save" now, or also end


class TrainJob(Settings):
    """A stage with its data, model and first weights (*what*), and how often it logs and saves (*how*)."""

    stage: StageConfig
    mixture: Mixture
    model: HarmonConfig
    tokenizer: str
    """Folder with tokenizer.json."""
    latents: str | Online
    """Column group of the pictures, at the stage's resolution; or how they become latents while training."""
    understanding: str | None = None
    """Column group of what is seen of pictures that are asked about, where the model does not see the latents."""
    weights: tuple[str, ...] = ()
    """Safetensors files with the first weights; modules that none holds start random."""
    previous: str | None = None
    """Key of the stage whose final weights these are."""
    runs: str
    """Folder of the run's stages; this stage takes `<stage>-<key8>` below it."""
    log_every: int = Field(10, gt=0)
    """Train steps from one line of metrics to the next."""
    checkpoint_every: int = Field(500, gt=0)
    """Train steps from one checkpoint to the next."""
    keep: int = Field(2, gt=0)
    """Newest checkpoints that stay."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of the weights, their gradients and moments."""
    autocast: Literal["bfloat16"] | None = None
    """What the matrix products run in; None: the weights' own type."""
    average: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, kept beside them; None, as in the paper: none."""
    guard: GuardConfig = GuardConfig()
    """Which steps are skipped."""
    execution: Execution = Execution()
    """How it runs on its workers."""
    store: str | None = None
    """s3://bucket/prefix, or another folder, for this run's checkpoints; None: beside the metrics."""
    save_behind: bool = False
    """Write checkpoints while training goes on, from a copy in memory."""
    device: Literal["cpu", "cuda"] = "cpu"

    def contents(self) -> dict[str, Any]:
        """What decides the result, by content: no path, no setting of *how*."""
        return {
            "version": VERSION,
            "stage": self.stage.model_dump(),
            "model": self.model.model_dump(),
            "mixture": {
                task: [
                    _drawn(entry) | {"content": self._hashes(entry.dataset, entry.text)}
                    for entry in self.mixture.of(task)
                ]
                for task in TASKS
                if self.stage.ratio.of(task)
            },
            "latents": self._pictures(),
            "tokenizer": file_hash(Path(self.tokenizer) / "tokenizer.json"),
            "weights": self.previous or [file_hash(Path(file)) for file in self.weights],
            "dtype": self.dtype,
            **self._beyond_the_paper(),
        }

    def _pictures(self) -> str | dict[str, object]:
        if isinstance(self.latents, str):
            return self.latents
        return self.latents.contents(file_hash(Path(self.latents.autoencoder)))

    def _beyond_the_paper(self) -> dict[str, Any]:
        """What decides the result and is set otherwise than by default: what is off leaves the key as it is."""
        values = self.model_dump(include={"autocast", "average", "understanding"}, exclude_defaults=True)
        if self.guard.sigmas is not None:  # its window decides nothing without, and its patience only when to give up
            values["guard"] = self.guard.model_dump(include={"sigmas", "window"}, exclude_defaults=True)
        return values

    def _hashes(self, dataset: str, text: str) -> dict[str, str]:
        pictures = self.latents if isinstance(self.latents, str) else "images"
        groups = ["source", pictures, *([self.understanding] if self.understanding else [])]
        groups += [text] if text.startswith("caption.") else []
        opened = Dataset(dataset)
        return {group: opened.group_hash(group) for group in groups if group in opened.groups()}


def _drawn(entry: MixtureSource) -> dict[str, Any]:
    """What an entry of a mixture says beside its dataset; without the epochs that it does not state."""
    return entry.model_dump(exclude={"dataset"} if entry.epochs is not None else {"dataset", "epochs"})


def training_key(job: TrainJob) -> str:
    """sha256 of the canonical JSON of `job.contents()`: equal keys give equal weights on one machine."""
    return sha256_hex(canonical_json(job.contents()))


def stage_folder(job: TrainJob, key: str) -> Path:
    """Where the stage keeps metrics, checkpoints and, when it is done, done.json."""
    return Path(job.runs) / f"{job.stage.stage}-{key[:8]}"


def stage_store(job: TrainJob, key: str) -> str | None:
    """Where the stage's checkpoints lie; None: in its folder."""
    return None if job.store is None else f"{job.store.rstrip('/')}/{stage_folder(job, key).name}"


def write_job(job: TrainJob, folder: Path) -> Path:
    """Write job.json into the stage's folder, from where torchrun reads it, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_whole(folder / JOB, (job.model_dump_json(indent=2) + "\n").encode())


def read_job(path: Path) -> TrainJob:
    """The job in a file that `write_job` wrote. Raises ConfigurationError where it is none."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); name a job.json that a run wrote.") from None
    return parse(TrainJob, values, str(path))


def done(folder: Path, key: str) -> dict[str, Any] | None:
    """What the finished stage in `folder` says of itself, or None where no stage of this key has finished."""
    try:
        record: dict[str, Any] = json.loads((folder / DONE).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise HarmonError(f"{folder / DONE} is damaged ({error}); delete it to train this stage again.") from None
    return record if record.get("key") == key else None


def file_hash(path: Path) -> str:
    """sha256 of a file that a job names, which is read once while it stays as it is.

    Raises HarmonError where it cannot be read.
    """
    try:
        stat = path.stat()
        return _hash_of(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise HarmonError(f"{path} cannot be read ({error.strerror}); name an existing file.") from None


@lru_cache(maxsize=256)
def _hash_of(path: Path, *_: int) -> str:
    return file_sha256(path)


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's metrics.jsonl, without one that a kill cut short."""
    path = folder / METRICS
    return parsed_lines(path.read_text()) if path.exists() else []


def parsed_lines(text: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [line for line in map(_parsed, text.splitlines()) if line is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
