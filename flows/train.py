"""`harmon train`: one stage of a recipe, begun, gone on with, stopped early, or told beforehand."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flows.gate import pass_gate
from flows.recipe import Recipe
from flows.training_work import execution_of, fewest_workers, job_of, mix_of, model_of, scores_of, train_number
from flows.watching import OnLine
from harmon.training.forecast import Forecast, forecast
from harmon.training.job import ROWS, TrainJob, stage_folder, training_key
from harmon.training.launch import check_workers, launchable
from harmon.training.mixture import blocks_of_step
from harmon.training.rows import StageRows
from harmon.training.stage import PARTS, TASKS, StageConfig, load_stage
from harmon.training.standing import completed, trained_steps
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import nearest


@dataclass(frozen=True)
class Stand:
    """How far a stage is."""

    stage: str
    folder: str
    step: int
    """Train steps in its latest complete checkpoint."""
    steps: int
    done: bool

    def sentence(self) -> str:
        """As `harmon train` prints it."""
        if self.done:
            return f"{self.stage} is done: {self.steps:,} train steps in {self.folder}"
        where = f"train step {self.step:,} of {self.steps:,} in {self.folder}"
        return f"{self.stage} stands at {where}; go on with --resume"


def stage_number(recipe: Recipe, name: str) -> int:
    """Which stage of `recipe` is called `name`, from 0. Raises ConfigurationError where none is."""
    names = [settings.stage for settings in recipe.training.stages]
    if name not in names:
        raise ConfigurationError(f"The recipe {recipe.name} has no stage '{name}'; {nearest(name, names)}.")
    return names.index(name)


def train_one(
    recipe: Recipe, name: str, resume: bool, stop_after: int | None = None, on_line: OnLine | None = None
) -> Stand:
    """Train stage `name` to its end, or `stop_after` train steps from where it stands.

    Raises:
        ConfigurationError: it has begun, and `resume` is not asked for.
        HarmonError: a stage before it or a training set is not there, or the training failed.
    """
    number = stage_number(recipe, name)
    job = job_of(recipe, number)
    if number:
        _open_gate(recipe, number - 1)
    now = standing(job)
    if now.done:
        return now
    if now.step and not resume:
        raise ConfigurationError(f"{now.sentence()}, or take it away with `harmon run RECIPE --redo train`.")
    until = None if stop_after is None else min(now.step + stop_after, now.steps)
    train_number(recipe, number, on_line, until)
    return standing(job)


def _open_gate(recipe: Recipe, number: int) -> None:
    """Pass the gate behind stage `number`; who types the command approves. Raises HarmonError where it is shut."""
    settings = recipe.training.stages[number]
    if settings.gate is not None:
        job = job_of(recipe, number)
        key = training_key(job)
        pass_gate(settings.gate, stage_folder(job, key), settings.stage, key, scores_of(recipe, number))


def standing(job: TrainJob) -> Stand:
    """How far the stage of `job` is."""
    key = training_key(job)
    done = completed(job, key) is not None
    return Stand(job.stage.stage, str(stage_folder(job, key)), trained_steps(job, key), job.stage.steps, done)


@dataclass(frozen=True)
class Sample:
    """A sample of the first train step to come."""

    task: str
    number: int
    dataset: str
    shard: int
    row: int
    key: str
    text: str


@dataclass(frozen=True)
class DryRun:
    """What training a stage would do."""

    stage: str
    plan: dict[str, Any]
    forecast: Forecast
    samples: tuple[Sample, ...]
    why_no_samples: str | None

    def to_json(self) -> dict[str, Any]:
        """As `harmon train --dry-run --json` prints it."""
        told = {"hours": self.forecast.hours, "gpu_hours": self.forecast.hours * self.forecast.workers}
        told |= {"largest_memory": max(memory.needed for memory in self.forecast.memory.values())}
        return asdict(self) | told

    def lines(self) -> Iterator[str]:
        """As `harmon train --dry-run` prints it."""
        yield f"{self.stage}:"
        for key, value in self.plan.items():
            yield f"    {key}: {value}"
        yield from (f"    {line}" for line in self.forecast.lines())
        if self.why_no_samples:
            yield f"    the first batch is not known yet: {self.why_no_samples}"
        else:
            yield f"    the first batch, {len(self.samples)} samples:"
        for one in self.samples:
            yield f"    {one.task} {one.number}: {one.key} ({one.dataset}, shard {one.shard}, row {one.row}) {one.text}"


def stage_of(recipe: Recipe, number: int) -> StageConfig:
    """Stage `number` of `recipe` with its departures from the paper."""
    settings = recipe.training.stages[number]
    return load_stage(settings.stage, settings.departures)


def forecast_of(recipe: Recipe, number: int, gpus: int | None = None) -> Forecast:
    """What stage `number` takes on `gpus` GPUs, the recipe's workers where None, laid out as its job says."""
    training = recipe.training
    workers, fewest = (gpus, gpus) if gpus else (max(1, training.launch.most_workers), fewest_workers(recipe))
    execution = training.execution if gpus else launchable(training.execution, training.launch)
    given = stage_of(recipe, number), model_of(recipe), workers, execution, mix_of(recipe, number)
    return forecast(*given, fewest=fewest)


def dry_run(recipe: Recipe, name: str, gpus: int | None = None) -> DryRun:
    """What training stage `name` would do on `gpus` GPUs, the recipe's workers where None; nothing is written."""
    number = stage_number(recipe, name)
    stage, told = stage_of(recipe, number), forecast_of(recipe, number, gpus)
    check_workers(execution_of(recipe, number), recipe.training.launch)
    plan = {
        "learning rates": ", ".join(f"{one} {stage.learning_rate.of(one) or 'frozen'}" for one in PARTS),
        "pictures": f"{stage.px} px",
        "global batch": f"{stage.global_batch} samples in {stage.blocks_per_step} blocks of {stage.block_rows}",
        "blocks": ":".join(f"{stage.ratio.of(task):g}" for task in TASKS) + " of " + ":".join(TASKS),
        "train steps": stage.steps,
        "workers": f"{told.workers}, each {-(-stage.block_rows // told.workers)} rows of a block",
    }
    try:
        samples, why = tuple(first_batch(recipe, number)), None
    except HarmonError as error:  # what is not there yet: datasets, latents, the stage before
        samples, why = (), str(error).splitlines()[0]
    return DryRun(name, plan, told, samples, why)


def first_batch(recipe: Recipe, number: int) -> Iterator[Sample]:
    """The samples of the next train step of stage `number`, in order."""
    job = job_of(recipe, number)
    latents = job.latents if isinstance(job.latents, str) else None
    kept = stage_folder(job, training_key(job)) / ROWS
    rows = StageRows(job.stage, job.mixture, latents, kept, keeps=False, understanding=job.understanding)
    step = min(trained_steps(job, training_key(job)), job.stage.steps - 1)
    for block in blocks_of_step(job.stage, step):
        for sample in block.share(0, 1):
            row = rows.row(block.task, sample)
            at = row.place
            yield Sample(block.task, sample, at.dataset, at.shard, at.row, at.key, _shown(row.text))
    rows.close()


def _shown(text: Any, most: int = 80) -> str:
    """The beginning of a caption, or of a conversation's first turn."""
    first = text if isinstance(text, str) else (text[0]["text"] or "" if text else "")
    return first if len(first) <= most else first[: most - 1] + "…"
