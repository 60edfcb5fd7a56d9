"""Pictures and answers of a stage's checkpoints, and their scores on scenes, made by a process of its own:

python -m harmon.training.samples RUN STAGE_FOLDER --settings JSON [--device cuda] [--store s3://BUCKET/PREFIX]
"""

import argparse
import json
import os
import shutil
import sys
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
from harmon.training.checkpoint_store import CheckpointStore
from harmon.training.scene_scores import WatchedScenes, line_of, write_scene_scores
from pipelines.disk import write_whole
from pipelines.errors import HarmonError
from pipelines.settings import Settings

ANSWERS = "answers.jsonl"
HELD = ".held"  # in the folder of the samples: the weights that are looked at
ATTEMPTS = 5  # at holding the newest checkpoint, while newer ones take its place
ROOM = 3, 4 << 30  # what sampling takes on a GPU: so many times the weights, and so many bytes


class SampleSettings(Settings):
    """Pictures and answers of a training's checkpoints, and their scores."""

    every: int = Field(gt=0)
    """Train steps from one look to the next; each looks at the latest complete checkpoint."""
    prompts: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """About each picture that was drawn."""
    seed: int = Field(0, ge=0)
    """Of the pictures of `prompts`."""
    scenes: WatchedScenes | None = None
    """A suite with exact ground truth that each look scores, for gates; None: no scores."""


def look_command(settings: SampleSettings, run: Path, folder: Path, device: str, store: str | None) -> list[str]:
    """The command of a process that does `look`."""
    command = [sys.executable, "-m", "harmon.training.samples", str(run), str(folder), "--device", device]
    return [*command, "--settings", settings.model_dump_json(), *(["--store", store] if store else [])]


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, or no checkpoint yet; 3 it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m harmon.training.samples", description="Look at a checkpoint.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("folder", type=Path, help="folder of the stage in it")
    parser.add_argument("--settings", required=True, help="training.watch.samples, as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--store", help="where the stage keeps its checkpoints beside its folder")
    chosen = parser.parse_args(arguments)
    settings = SampleSettings.model_validate_json(chosen.settings)
    try:
        look(settings, chosen.run, chosen.folder, chosen.device, chosen.store)
    except HarmonError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def look(
    settings: SampleSettings, run: Path, folder: Path, device: str = "cpu", store: str | None = None
) -> Path | None:
    """Look at the latest complete checkpoint of the stage in `folder`, a part of `run`, or in its `store`: pictures of
    the prompts and answers about them into `folder`/samples/STEP, which is returned, and a line of scores on scenes
    into `folder`/scores.jsonl. None where it has no checkpoint yet. What is there already is left as it is.

    It is done with the averaged weights where the checkpoint has them, on `device` where that is free, else on the
    CPU.

    Raises HarmonError where the checkpoint cannot be read.
    """
    with held(folder, store) as checkpoint:
        if checkpoint is None:
            return None
        out = folder / "samples" / checkpoint.name
        draws = not (out / ANSWERS).exists()
        scores = settings.scenes and line_of(folder, int(checkpoint.name), settings.scenes) is None
        if draws or scores:
            stage = next((one for one in description_of(run).stages if one.folder == folder.name), None)
            if stage is None:
                raise HarmonError(f"The run folder {run} does not say that {folder.name} is a stage of it.")
            place = free_device(device, (checkpoint / MODEL).stat().st_size)
            trained = made_ready(open_run_at(run, stage, checkpoint), place)
            if draws:
                write_samples(settings, trained, out)
            if settings.scenes and scores:
                write_scene_scores(settings.scenes, trained, folder)
        return out


@contextmanager
def held(folder: Path, store: str | None = None) -> Iterator[Path | None]:
    """The weights of the newest complete checkpoint of the stage in `folder`, the averaged ones where there are any,
    as model.safetensors in a folder of the checkpoint's name: links, which stay when training deletes the checkpoint,
    or a copy from `store` where that has a newer one, of a training on another machine.
    """
    place, stored = folder / "samples" / HELD, None if store is None else CheckpointStore(store)
    for _ in range(ATTEMPTS):
        shutil.rmtree(place, ignore_errors=True)  # of one that was killed
        latest = latest_checkpoint(folder / "checkpoints")
        newest = max(stored.steps(), default=0) if stored else 0
        if latest is None and not newest:
            yield None
            return
        if stored and (latest is None or int(latest.name) < newest):
            copy = place / f"{newest:06d}"
            copy.mkdir(parents=True)
            found = stored.fetch_first(newest, (AVERAGE, MODEL), copy / MODEL)
        else:
            assert latest is not None
            copy = place / latest.name
            copy.mkdir(parents=True)
            found = _hold(latest, folder, copy / MODEL)
        if not found:  # deleted meanwhile
            continue
        try:
            yield copy
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    raise HarmonError(f"Checkpoints in {folder} come and go faster than they can be looked at; keep more of them.")


def _hold(latest: Path, folder: Path, target: Path) -> bool:
    """Link a checkpoint's average, or else its weights; False where it was deleted meanwhile."""
    try:
        _link(latest / AVERAGE if (latest / AVERAGE).exists() else latest / MODEL, target)
    except FileNotFoundError:
        return False
    # only while it is the latest may its average not have been deleted before
    return latest_checkpoint(folder / "checkpoints") == latest


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


def write_samples(settings: SampleSettings, trained: Trained, out: Path) -> None:
    """Pictures of the prompts by `trained`, and answers about each, into the folder `out`."""
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
    lines = [
        json.dumps({"file": files[place].name, "question": question, "answer": answer}) + "\n"
        for (place, question), answer in zip(pairs, said, strict=True)
    ]
    write_whole(out / ANSWERS, "".join(lines).encode())


if __name__ == "__main__":
    sys.exit(main())
