"""Pictures and answers of a stage's checkpoints while it trains."""

import json
from pathlib import Path

from pydantic import Field

from harmon.ask import answer_questions, read_picture
from harmon.generate import dtype_of, generate_files
from harmon.picture_files import PictureRecord
from harmon.sampling_config import SamplingConfig
from harmon.trained import load
from harmon.training.checkpoint import latest_checkpoint
from pipelines.settings import Settings


class SampleSettings(Settings):
    """Pictures and answers of a training's checkpoints."""

    every: int = Field(gt=0)
    """Train steps from one look to the next; each looks at the latest complete checkpoint."""
    prompts: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """About each picture that was drawn."""
    seed: int = Field(0, ge=0)


def write_samples(settings: SampleSettings, run: Path, folder: Path) -> Path | None:
    """Pictures of the prompts, and answers about them, by the stage's latest complete checkpoint, into
    `folder`/samples/STEP; None where it has none yet. What is there already is left as it is.
    """
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is None:
        return None
    out = folder / "samples" / latest.name
    answers = out / "answers.jsonl"
    if answers.exists():
        return out
    trained = load(run)
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
    attempt.replace(answers)
    return out
