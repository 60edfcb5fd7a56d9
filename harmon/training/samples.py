"""Pictures and answers of a stage's checkpoints while it trains."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import Field

from harmon.ask import answer_questions, read_picture
from harmon.generate import dtype_of, generate_files
from harmon.picture_files import PictureRecord
from harmon.sampling_config import SamplingConfig
from harmon.trained import Trained, description_of, made_ready, open_run_at
from harmon.training.checkpoint import AVERAGE, MODEL, latest_checkpoint
from pipelines.errors import HarmonError
from pipelines.settings import Settings

HELD = ".held"  # in the folder of the samples: the weights that are looked at
ATTEMPTS = 5  # at holding the newest checkpoint, while newer ones take its place
ROOM = 3, 4 << 30  # what sampling takes on a GPU: so many times the weights, and so many bytes


class SampleSettings(Settings):
    """Pictures and answers of a training's checkpoints."""

    every: int = Field(gt=0)
    """Train steps from one look to the next; each looks at the latest complete checkpoint."""
    prompts: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """About each picture that was drawn."""
    seed: int = Field(0, ge=0)


def write_samples(settings: SampleSettings, run: Path, folder: Path, device: str = "cpu") -> Path | None:
    """Pictures of the prompts, and answers about them, by the latest complete checkpoint of the stage in `folder`, a
    part of `run`, into `folder`/samples/STEP; None where it has none yet. What is there already is left as it is.

    They are made with the averaged weights where the checkpoint has them, on `device` where that is free, else on the
    CPU.

    Raises HarmonError where the checkpoint cannot be read.
    """
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None and (folder / "samples" / latest.name / "answers.jsonl").exists():
        return folder / "samples" / latest.name
    with held(folder) as checkpoint:
        if checkpoint is None:
            return None
        stage = next((one for one in description_of(run).stages if one.folder == folder.name), None)
        if stage is None:
            raise HarmonError(f"The run folder {run} does not say that {folder.name} is a stage of it.")
        place = free_device(device, (checkpoint / MODEL).stat().st_size)
        try:
            contents = open_run_at(run, stage, checkpoint)
            return _write(settings, made_ready(contents, place), folder / "samples" / checkpoint.name)
        finally:
            if place != "cpu":
                torch.cuda.empty_cache()  # training may need it


@contextmanager
def held(folder: Path) -> Iterator[Path | None]:
    """The weights of the newest complete checkpoint of the stage in `folder`, the averaged ones where there are any,
    as model.safetensors in a folder of the checkpoint's name: links, which stay when training deletes the checkpoint.
    """
    place = folder / "samples" / HELD
    for _ in range(ATTEMPTS):
        shutil.rmtree(place, ignore_errors=True)  # of one that was killed
        latest = latest_checkpoint(folder / "checkpoints")
        if latest is None:
            yield None
            return
        copy = place / latest.name
        copy.mkdir(parents=True)
        try:
            _link(latest / AVERAGE if (latest / AVERAGE).exists() else latest / MODEL, copy / MODEL)
        except FileNotFoundError:  # deleted meanwhile
            continue
        if latest_checkpoint(folder / "checkpoints") != latest:  # only then may its average have been deleted before
            continue
        try:
            yield copy
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    raise HarmonError(f"Checkpoints in {folder} come and go faster than they can be looked at; keep more of them.")


def free_device(wanted: str, weights: int) -> str:
    """`wanted`, or the CPU where it is no GPU here with room for sampling with `weights` bytes of weights."""
    if wanted != "cuda" or not torch.cuda.is_available():
        return "cpu"
    free, _ = torch.cuda.mem_get_info()
    return "cuda" if free > ROOM[0] * weights + ROOM[1] else "cpu"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _write(settings: SampleSettings, trained: Trained, out: Path) -> Path:
    how = SamplingConfig(**trained.sampling).resolved(trained.model.config)
    shared = {"width": trained.px, "height": trained.px, "sampling": how, "weights": trained.fingerprint}
    shared |= {"dtype": dtype_of(trained), "negative": None}
    records = [PictureRecord(prompt=prompt, seed=settings.seed, **shared) for prompt in settings.prompts]
    files = generate_files(trained, records, out)
    pictures = [read_picture(file) for file in files]
    pairs = [(place, question) for place in range(len(files)) for question in settings.questions]
    asked = [pictures[place] for place, _ in pairs], [question for _, question in pairs]
    said = answer_questions(trained, *asked) if pairs else []
    out.mkdir(parents=True, exist_ok=True)
    attempt = out / "answers.jsonl.writing"
    attempt.write_text(
        "".join(
            json.dumps({"file": files[place].name, "question": question, "answer": answer}) + "\n"
            for (place, question), answer in zip(pairs, said, strict=True)
        )
    )
    attempt.replace(out / "answers.jsonl")
    return out
