"""The training steps of a recipe: each stage's job, its layout, its run, and the gate behind it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flows.caption_groups import caption_groups_of
from flows.flow_run import cancellation
from flows.gate import Gate, Scores, check, pass_gate, passed
from flows.job_log import run_log
from flows.pictures import latents_of, understanding_file
from flows.ray_job import train_on_cluster
from flows.recipe import Recipe, StageSettings, part
from flows.watching import OnLine, last_scores, watched
from flows.work_item import Work
from harmon.latents import latents_group
from harmon.model.config import PRESETS, HarmonConfig
from harmon.trained import RunDescription, TrainedStage, describe_run, description_of
from harmon.training.execution import Execution
from harmon.training.forecast import Mix, resolved
from harmon.training.job import TrainJob, stage_folder, stage_store, training_key
from harmon.training.launch import launchable, train_stage
from harmon.training.loop import final_weights
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.rows import PICTURE
from harmon.training.stage import TASKS, load_stage
from harmon.training.standing import completed, erase
from pipelines.settings import parse
from pipelines.steps import Progress, ProgressCallback


def model_of(recipe: Recipe) -> HarmonConfig:
    """The sizes of the recipe's model: those of a published one by name, or a file's; and what it sees with."""
    named, seeing = recipe.training.model, recipe.training.understanding
    model = HarmonConfig.preset(named) if named in PRESETS else HarmonConfig.from_file(part(named))
    if seeing is None:
        return model
    told = {"encoder": seeing.encoder, "channels": seeing.channels, "grid": seeing.grid}
    seen = {f"understanding_{name}": value for name, value in told.items()}
    return parse(HarmonConfig, model.model_dump() | seen, "training.understanding")


def job_of(recipe: Recipe, number: int) -> TrainJob:
    """The training of stage `number`, counted from 0, laid out as the recipe says: what it leaves to the memory model
    `launched_job` chooses. The stages before it and its training sets must be done.
    """
    training, settings, seeing = recipe.training, recipe.training.stages[number], understanding_file(recipe)
    stage = load_stage(settings.stage, settings.departures)
    weights: tuple[str, ...] = tuple(str(part(file)) for file in training.weights)
    previous = None
    if number:
        before = job_of(recipe, number - 1)
        previous = training_key(before)
        weights = (str(final_weights(stage_folder(before, previous), stage_store(before, previous))),)
    return TrainJob(
        stage=stage,
        mixture=Mixture(**{task: _entries(recipe, settings, task) for task in TASKS}),
        model=model_of(recipe),
        tokenizer=str(part(training.tokenizer)),
        latents=latents_of(recipe, stage.px),
        understanding=None if seeing is None else latents_group(stage.px, seeing),
        weights=weights,
        previous=previous,
        runs=str(recipe.run_folder / "train"),
        log_every=training.log_every,
        checkpoint_every=training.checkpoint_every,
        keep=training.keep,
        save_behind=training.save_behind,
        store=None if training.store is None else f"{training.store}/{recipe.name}/{recipe.run_folder.name}",
        autocast=training.autocast,
        average=training.average,
        guard=training.guard,
        execution=training.execution,
        device=training.device,
    )


def launched_job(recipe: Recipe, number: int) -> TrainJob:
    """`job_of` with the layout that it runs in. Raises ConfigurationError where none fits, as `resolved` says."""
    return job_of(recipe, number).model_copy(update={"execution": execution_of(recipe, number)})


def execution_of(recipe: Recipe, number: int) -> Execution:
    """How stage `number` runs, what the recipe leaves to the memory model chosen for the fewest workers."""
    settings = recipe.training.stages[number]
    stage, mix = load_stage(settings.stage, settings.departures), mix_of(recipe, number)
    named = launchable(recipe.training.execution, recipe.training.launch)
    return resolved(named, stage, model_of(recipe), fewest_workers(recipe), mix)


def fewest_workers(recipe: Recipe) -> int:
    """Workers that a stage of `recipe` trains on at least; this process counts as one."""
    workers = recipe.training.launch.workers
    return max(1, workers if isinstance(workers, int) else workers[0])


def mix_of(recipe: Recipe, number: int) -> Mix:
    """What of stage `number` decides its memory beside its sizes."""
    training = recipe.training
    pictures = any(entry.text == PICTURE for entry in training.stages[number].text2image)
    return Mix(training.autocast is not None, training.average is not None, pictures)


def _entries(recipe: Recipe, settings: StageSettings, task: str) -> tuple[MixtureSource, ...]:
    captions = caption_groups_of(recipe)
    return tuple(
        MixtureSource(
            dataset=str(recipe.dataset(entry.set)),
            rows=entry.rows,
            text=captions.get(entry.text, entry.text),
            sources=entry.sources,
            weight=entry.weight,
            epochs=entry.epochs,
        )
        for entry in getattr(settings, task)
    )


def stage_works(recipe: Recipe, number: int, ray: Callable[[], AbstractContextManager[None]]) -> list[Work]:
    """The training of stage `number`, and the gate behind it."""
    gate = recipe.training.stages[number].gate
    return [_train(recipe, number, ray), *([_gate(recipe, number, gate, ray)] if gate else [])]


def _gate(recipe: Recipe, number: int, gate: Gate, ray: Callable[[], AbstractContextManager[None]]) -> Work:
    """The gate counts as a part of the step `train`, so that --until train does not go past it."""
    stage = recipe.training.stages[number].stage

    def stands() -> tuple[Path, str]:
        job = job_of(recipe, number)
        key = training_key(job)
        return stage_folder(job, key), key

    def is_done() -> bool:
        folder, key = stands()
        return passed(gate, folder, key)

    def do(_: ProgressCallback) -> None:
        folder, key = stands()
        pass_gate(gate, folder, stage, key, scores_of(recipe, number))

    def ask() -> None:
        check(gate, stands()[0], stage, scores_of(recipe, number))

    return Work(
        "train",
        f"{stage} gate",
        is_done,
        do,
        session=None if gate.approval else ray,
        ask=ask if gate.approval else None,
    )


def scores_of(recipe: Recipe, number: int) -> Scores:
    """Scores on scenes of the finished stage `number`, made when they are first asked for if no look has."""

    def scores() -> dict[str, float]:
        job = job_of(recipe, number)
        key = training_key(job)
        folder, kept = stage_folder(job, key), stage_store(job, key)
        if folder.name not in {one.folder for one in description_of(recipe.run_folder).stages}:
            describe(recipe, number + 1)  # it was a run of other settings meanwhile
        return last_scores(recipe.training.watch, recipe.run_folder, folder, job.stage.steps, job.device, kept)

    return scores


def _train(recipe: Recipe, number: int, ray: Callable[[], AbstractContextManager[None]]) -> Work:
    def is_done() -> bool:
        job = job_of(recipe, number)
        return completed(job, training_key(job)) is not None

    def undo() -> None:
        job = job_of(recipe, number)
        erase(job, training_key(job))

    def do(progress: ProgressCallback) -> None:
        settings = recipe.training.stages[number]
        steps = load_stage(settings.stage, settings.departures).steps

        def mirror(line: Mapping[str, Any]) -> None:
            progress(Progress("train", settings.stage, line["step"], steps, sum(line["samples"].values())))

        train_number(recipe, number, on_line=mirror if recipe.training.launch.submit else None)

    return Work("train", recipe.training.stages[number].stage, is_done, do, undo, ray, unit="train steps")


def train_number(recipe: Recipe, number: int, on_line: OnLine | None = None, until: int | None = None) -> None:
    """Train stage `number`, or only up to train step `until`; its run folder then says of itself what it is, followed
    by what the recipe asks.
    """
    describe(recipe, number + 1)
    job = launched_job(recipe, number)
    key = training_key(job)
    folder, kept = stage_folder(job, key), stage_store(job, key)
    with watched(recipe.training.watch, recipe.run_folder, folder, recipe.name, job.device, kept) as watch:

        def both(line: dict[str, Any]) -> None:
            for told in (watch, on_line):
                if told:
                    told(line)

        launch = recipe.training.launch
        if launch.submit:
            train_on_cluster(job, launch, both, cancellation(), until, run_log())
        else:
            train_stage(job, launch, both if watch or on_line else None, until)


def description(recipe: Recipe, stages: int) -> RunDescription:
    """What the run folder says of itself: it may hold stages of several settings, of which one set is the run's."""
    jobs = [job_of(recipe, number) for number in range(stages)]
    return RunDescription(
        model=jobs[-1].model,
        stages=tuple(TrainedStage(folder=stage_folder(job, training_key(job)).name, px=job.stage.px) for job in jobs),
        sampling=recipe.evaluation.sampling.model_dump(),
    )


def describe(recipe: Recipe, stages: int) -> None:
    tokenizer, autoencoder = part(recipe.training.tokenizer), part(recipe.training.autoencoder)
    seeing = understanding_file(recipe)
    describe_run(recipe.run_folder, description(recipe, stages), tokenizer, autoencoder, seeing)
