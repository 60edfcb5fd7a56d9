"""The steps of a recipe, in order: for each, whether it is done, and how it is done.

A dataset's step asks the dataset for a commit of its key, a training stage its folder for done.json; the audit and the
report compare what they were made from. So a step's answer needs every step before it, and the first one that is not
done ends the asking.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filtering.aesthetic import aesthetic_step, load_head, score_aesthetics
from filtering.clarity import clarity_step, score_clarity
from filtering.embedding import Clip, embed_images, embed_step
from filtering.select import select, select_step
from filtering.selection import Selection
from flows.flow_run import cancellation
from flows.gate import Gate, check, pass_gate, passed
from flows.pictures import latents_needed, latents_of
from flows.ray_job import train_on_cluster
from flows.recipe import AestheticSettings, FilesSettings, Recipe, StageSettings, part
from flows.report.build import build_report
from flows.report.inputs import ReportInput
from flows.terminal import shown_live
from flows.watching import OnLine, watched
from harmon.evaluation.curve import CURVE, write_curve
from harmon.evaluation.run import EvaluationConfig, evaluate_run, is_evaluated
from harmon.latents import latents_step, write_latents
from harmon.model.config import PRESETS, HarmonConfig, changed_defaults
from harmon.trained import RunDescription, TrainedStage, describe_run, is_described
from harmon.training.execution import Execution
from harmon.training.forecast import Mix, resolved
from harmon.training.job import TrainJob, file_hash, stage_folder, stage_store, training_key
from harmon.training.launch import ray_session, train_stage
from harmon.training.loop import final_weights
from harmon.training.mixture import Mixture, MixtureSource
from harmon.training.rows import PICTURE
from harmon.training.stage import TASKS, Departure, departures, load_stage
from harmon.training.standing import completed, erase
from pipelines.acquire import Acquisition, acquire, is_acquired
from pipelines.audit import audit
from pipelines.catalogue import Source, source
from pipelines.dataset import Dataset
from pipelines.download import download, download_step
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.loopback import serve
from pipelines.steps import Progress, ProgressCallback, Step, StepRun
from pipelines.terms import check_accepted
from pipelines.tombstones import standing
from pipelines.web import WebSettings, is_published, planted, publish
from recaption.captions import write_captions
from recaption.engines import Engine, open_engine
from recaption.language_model import language_model
from recaption.prompt import load_prompt
from recaption.recaption import Recaption


@dataclass(frozen=True)
class Work:
    """One step on one dataset, stage or page."""

    step: str
    """What --from and --until name: publish, download, rewrite, clarity, select, latents, train, evaluate, …"""
    subject: str
    """What it is done to: a dataset's or stage's name."""
    is_done: Callable[[], bool]
    """Asked only when everything before it is done."""
    do: Callable[[ProgressCallback], None]
    undo: Callable[[], None] | None = None
    """Takes the result away, so that it is made again; None: it stands in a dataset, where nothing is overwritten."""
    session: Callable[[], AbstractContextManager[None]] | None = None
    """What stays open from the first step with this session to the last: one Ray for all stages."""
    unit: str = "shards"
    """What its progress counts."""
    ask: Callable[[], None] | None = None
    """A person resumes the flow run before it is done; called before that, and raises where there is nothing to ask."""

    @property
    def name(self) -> str:
        """As logs and the Prefect UI show it."""
        return f"{self.step}:{self.subject}"


def work_of(recipe: Recipe) -> list[Work]:
    """Every step of `recipe`, in order."""
    ray = partial(ray_session, recipe.training.launch)
    return [
        *([_publish(recipe, recipe.web)] if recipe.web else []),
        *(_download(recipe, name) for name in recipe.sources),
        *(_captions(recipe, name, captions) for name, published in recipe.captions.items() for captions in published),
        *(_rewrite(recipe, name, prompt) for name in recipe.recaption.datasets for prompt in recipe.recaption.prompts),
        *(_clarity(recipe, name) for name in recipe.sources),
        *(_embed(recipe, name, recipe.aesthetic) for name in recipe.sources if recipe.aesthetic),
        *(_aesthetic(recipe, name, recipe.aesthetic) for name in recipe.sources if recipe.aesthetic),
        *(_select(recipe, name) for name in recipe.sets),
        *(_latents(recipe, name, px) for name, px in latents_needed(recipe)),
        *(work for number in range(len(recipe.training.stages)) for work in _stage(recipe, number, ray)),
        *([_curve(recipe, recipe.curve)] if recipe.curve else []),
        _evaluate(recipe),
        _audit(recipe),
        _report(recipe),
    ]


def datasets_of(recipe: Recipe) -> list[Dataset]:
    """Every dataset that the recipe writes."""
    return [Dataset(recipe.dataset(name)) for name in (*recipe.sources, *recipe.sets)]


def rewrite_of(recipe: Recipe, prompt: str | None = None) -> Recaption:
    """The recipe's rewriting by this version of the prompt, or by its first one: prompt and model."""
    settings = recipe.recaption
    return Recaption(load_prompt(prompt or settings.prompt), language_model(part(settings.model), settings.model_name))


def caption_groups_of(recipe: Recipe) -> dict[str, str]:
    """The caption group of every prompt version of the recipe, `rewrite` standing for the first, and of the published
    captions that are there.
    """
    groups = {prompt: rewrite_of(recipe, prompt).group for prompt in recipe.recaption.prompts}
    return {"rewrite": groups[recipe.recaption.prompt]} | groups | _published_groups(recipe)


def _published_groups(recipe: Recipe, sources: Sequence[str] | None = None) -> dict[str, str]:
    """The column group of each entry of published captions that stands in its source's dataset, one of `sources`."""
    return {
        captions: group
        for name, published in recipe.captions.items()
        if sources is None or name in sources
        for captions in published
        for group in Dataset(recipe.dataset(name)).groups()
        if group.startswith(f"caption.published-{captions}-")
    }


def selection_of(recipe: Recipe, name: str) -> Selection:
    """The selection of training set `name`, which carries the captions that its sources have been given along."""
    selection, sources = recipe.sets[name], recipe.sources_of(name)
    rewritten = any(one in recipe.recaption.datasets for one in sources)
    groups = [rewrite_of(recipe, prompt).group for prompt in recipe.recaption.prompts] if rewritten else []
    groups += _published_groups(recipe, sources).values()
    return selection.model_copy(update={"carry": (*selection.carry, *dict.fromkeys(groups))})


def model_of(recipe: Recipe) -> HarmonConfig:
    """The sizes of the recipe's model: those of a published one by name, or a file's."""
    named = recipe.training.model
    return HarmonConfig.preset(named) if named in PRESETS else HarmonConfig.from_file(part(named))


def job_of(recipe: Recipe, number: int) -> TrainJob:
    """The training of stage `number`, counted from 0; the stages before it and its training sets must be done."""
    training, settings = recipe.training, recipe.training.stages[number]
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
        execution=execution_of(recipe, number),
        device=training.device,
    )


def execution_of(recipe: Recipe, number: int) -> Execution:
    """How stage `number` runs, what the recipe leaves to the memory model chosen for the fewest workers."""
    settings = recipe.training.stages[number]
    stage, mix = load_stage(settings.stage, settings.departures), mix_of(recipe, number)
    return resolved(recipe.training.execution, stage, model_of(recipe), fewest_workers(recipe), mix)


def fewest_workers(recipe: Recipe) -> int:
    """Workers that a stage of `recipe` trains on at least; this process counts as one."""
    workers = recipe.training.launch.workers
    return max(1, workers if isinstance(workers, int) else workers[0])


def mix_of(recipe: Recipe, number: int) -> Mix:
    """What of stage `number` decides its memory beside its sizes."""
    training = recipe.training
    pictures = any(entry.text == PICTURE for entry in training.stages[number].text2image)
    return Mix(training.autocast is not None, training.average is not None, pictures)


def _publish(recipe: Recipe, web: WebSettings) -> Work:
    def do(_: ProgressCallback) -> None:
        publish(recipe.web_folder, web)

    return Work("publish", "web", lambda: is_published(recipe.web_folder, web), do)


def _download(recipe: Recipe, name: str) -> Work:
    dataset, settings = Dataset(recipe.dataset(name)), recipe.sources[name]
    entry = source(name, settings=recipe.files.get(name, FilesSettings()).entry)
    check_accepted(entry, recipe.terms)
    if entry.layouts:
        return _acquire(recipe, name, entry)
    web, links = recipe.web, recipe.web_folder / f"list-{name}.parquet"
    if web is None:
        raise ConfigurationError(
            f"The source {name} is a list that the stand-in web publishes, and the recipe {recipe.name} has no `web`."
        )

    def do(progress: ProgressCallback) -> None:
        with serve(recipe.web_folder, web.port), shown_live(redraw=False) as live:
            download(dataset, entry, links, settings, recipe.fetch, progress, live)

    return _dataset_work("download", dataset, lambda: _new(dataset, download_step(entry, links, settings)), do)


def _acquire(recipe: Recipe, name: str, entry: Source) -> Work:
    """A source that is published elsewhere, read from the hub or from a folder."""
    files = recipe.files.get(name, FilesSettings())
    dataset = Dataset(recipe.dataset(name))
    folder = None if files.folder is None else Path(files.folder).absolute()
    asked = Acquisition(recipe.sources[name], dict(recipe.terms), folder, files.only, recipe.fetch)

    def do(progress: ProgressCallback) -> None:
        with shown_live(redraw=False) as live:
            acquire(dataset, entry, asked, progress, on_live=live)

    return Work("download", dataset.name, lambda: is_acquired(dataset, entry, asked), do)


def _captions(recipe: Recipe, name: str, captions: str) -> Work:
    """Published captions joined to the rows of a source."""
    files = recipe.files.get(captions, FilesSettings())
    entry, dataset = source(captions, settings=files.entry), Dataset(recipe.dataset(name))
    check_accepted(entry, recipe.terms)
    folder = None if files.folder is None else Path(files.folder).absolute()
    asked = Acquisition(recipe.sources[name], dict(recipe.terms), folder, files.only, recipe.fetch)

    def do(progress: ProgressCallback) -> None:
        acquire(dataset, entry, asked, progress)

    return Work("captions", f"{name}@{captions}", lambda: captions in _published_groups(recipe), do)


def _rewrite(recipe: Recipe, name: str, prompt: str) -> Work:
    dataset, log = Dataset(recipe.dataset(name)), recipe.run_folder / "logs" / "vllm.log"
    reuse = [Dataset(folder) for folder in recipe.reuse]

    def open_it() -> AbstractContextManager[Engine]:
        return open_engine(recipe.recaption, rewrite_of(recipe, prompt).model, log)

    def do(progress: ProgressCallback) -> None:
        write_captions(dataset, rewrite_of(recipe, prompt), open_it, progress, reuse)

    subject = name if prompt == recipe.recaption.prompt else f"{name}@{prompt}"
    return _dataset_work("rewrite", dataset, lambda: rewrite_of(recipe, prompt).step(dataset), do, subject)


def _clarity(recipe: Recipe, name: str) -> Work:
    dataset = Dataset(recipe.dataset(name))

    def do(progress: ProgressCallback) -> None:
        score_clarity(dataset, progress)

    return _dataset_work("clarity", dataset, lambda: clarity_step(dataset), do)


def clip_of(settings: AestheticSettings) -> Clip:
    """The recipe's CLIP."""
    return Clip(part(settings.clip), settings.architecture)


def _embed(recipe: Recipe, name: str, settings: AestheticSettings) -> Work:
    dataset = Dataset(recipe.dataset(name))

    def do(progress: ProgressCallback) -> None:
        embed_images(dataset, clip_of(settings), progress)

    return _dataset_work("embed", dataset, lambda: embed_step(dataset, clip_of(settings)), do)


def _aesthetic(recipe: Recipe, name: str, settings: AestheticSettings) -> Work:
    dataset = Dataset(recipe.dataset(name))

    def do(progress: ProgressCallback) -> None:
        score_aesthetics(dataset, load_head(part(settings.head)), clip_of(settings).group, progress)

    def step() -> Step:
        return aesthetic_step(dataset, load_head(part(settings.head)), clip_of(settings).group)

    return _dataset_work("aesthetic", dataset, step, do)


def _select(recipe: Recipe, name: str) -> Work:
    target = Dataset(recipe.dataset(name))
    sources = [Dataset(recipe.dataset(source)) for source in recipe.sources_of(name)]

    def do(progress: ProgressCallback) -> None:
        select(sources, target, selection_of(recipe, name), progress)

    return _dataset_work("select", target, lambda: _new(target, select_step(sources, selection_of(recipe, name))), do)


def _latents(recipe: Recipe, name: str, px: int) -> Work:
    dataset, autoencoder = Dataset(recipe.dataset(name)), part(recipe.training.autoencoder)

    def do(progress: ProgressCallback) -> None:
        write_latents(dataset, px, autoencoder, progress)

    return _dataset_work("latents", dataset, lambda: latents_step(dataset, px, autoencoder), do, f"{name}@{px}px")


def _new(dataset: Dataset, step: Step) -> Step:
    """`step`, which writes the rows of `dataset`; a dataset whose rows were made otherwise is never mixed with it.

    Raises:
        ConfigurationError: the dataset stands and was not made by this step.
    """
    if dataset.head is not None and standing(dataset, step) is None:
        raise ConfigurationError(
            f"{dataset.root} was made with other settings of {step.name}, or from other data; "
            "name a new folder for this recipe's datasets with --set data=FOLDER."
        )
    return step


def _dataset_work(
    name: str,
    dataset: Dataset,
    step: Callable[[], Step],
    do: Callable[[ProgressCallback], None],
    subject: str | None = None,
) -> Work:
    return Work(name, subject or dataset.name, lambda: StepRun(dataset, step()).committed is not None, do)


def _entries(recipe: Recipe, settings: StageSettings, task: str) -> tuple[MixtureSource, ...]:
    captions = caption_groups_of(recipe)
    return tuple(
        MixtureSource(
            dataset=str(recipe.dataset(entry.set)),
            rows=entry.rows,
            text=captions.get(entry.text, entry.text),
            sources=entry.sources,
            weight=entry.weight,
        )
        for entry in getattr(settings, task)
    )


def _stage(recipe: Recipe, number: int, ray: Callable[[], AbstractContextManager[None]]) -> list[Work]:
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
        pass_gate(gate, folder, stage, key)

    def ask() -> None:
        check(gate, stands()[0], stage)

    return Work(
        "train",
        f"{stage} gate",
        is_done,
        do,
        session=None if gate.approval else ray,
        ask=ask if gate.approval else None,
    )


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
    _describe(recipe, number + 1)
    job = job_of(recipe, number)
    folder = stage_folder(job, training_key(job))
    with watched(recipe.training.watch, recipe.run_folder, folder, recipe.name, job.device) as watch:

        def both(line: dict[str, Any]) -> None:
            for told in (watch, on_line):
                if told:
                    told(line)

        launch = recipe.training.launch
        if launch.submit:
            train_on_cluster(job, launch, both, cancellation(), until)
        else:
            train_stage(job, launch, both if watch or on_line else None, until)


def _description(recipe: Recipe, stages: int) -> RunDescription:
    """What the run folder says of itself: it may hold stages of several settings, of which one set is the run's."""
    jobs = [job_of(recipe, number) for number in range(stages)]
    return RunDescription(
        model=jobs[-1].model,
        stages=tuple(TrainedStage(folder=stage_folder(job, training_key(job)).name, px=job.stage.px) for job in jobs),
        sampling=recipe.evaluation.sampling.model_dump(),
    )


def _describe(recipe: Recipe, stages: int) -> None:
    tokenizer, autoencoder = part(recipe.training.tokenizer), part(recipe.training.autoencoder)
    describe_run(recipe.run_folder, _description(recipe, stages), tokenizer, autoencoder)


def _evaluate(recipe: Recipe) -> Work:
    stages = len(recipe.training.stages)

    def is_done() -> bool:
        described = is_described(recipe.run_folder, _description(recipe, stages))
        return described and is_evaluated(recipe.run_folder, recipe.evaluation)

    def do(_: ProgressCallback) -> None:
        _describe(recipe, stages)
        evaluate_run(recipe.run_folder, recipe.evaluation)

    def undo() -> None:
        shutil.rmtree(recipe.run_folder / "evaluation", ignore_errors=True)

    return Work("evaluate", recipe.name, is_done, do, undo)


def _curve(recipe: Recipe, config: EvaluationConfig) -> Work:
    page, record = recipe.run_folder / CURVE, recipe.run_folder / "curve.json"

    def made_from() -> dict[str, Any]:
        described = _description(recipe, len(recipe.training.stages))
        folders = [recipe.run_folder / "train" / stage.folder for stage in described.stages]
        return {
            "run": described.model_dump(mode="json"),
            "weights": [file_hash(final_weights(folder)) for folder in folders],
            "of": config.model_dump(mode="json"),
        }

    def do(_: ProgressCallback) -> None:
        _describe(recipe, len(recipe.training.stages))
        record.unlink(missing_ok=True)
        write_curve(recipe.run_folder, config)
        _record(record, made_from())

    return Work(
        "curve",
        recipe.name,
        lambda: page.exists() and _recorded(record) == made_from(),
        do,
        partial(record.unlink, missing_ok=True),
    )


def _audit(recipe: Recipe) -> Work:
    record = recipe.run_folder / "audit.json"

    def is_done() -> bool:
        found = _recorded(record)
        heads = {dataset.name: dataset.head for dataset in datasets_of(recipe)}
        return all(head and _audited(found.get(name, {}), head.content_hash) for name, head in heads.items())

    def do(_: ProgressCallback) -> None:
        reports = {dataset.name: audit(dataset, deep=True) for dataset in datasets_of(recipe)}
        _record(record, {name: report.to_json() for name, report in reports.items()})
        unsound = [name for name, report in reports.items() if not report.sound]
        if unsound:
            raise HarmonError(f"The audit found {', '.join(unsound)} unsound; run `harmon audit --deep` on it.")

    return Work("audit", "datasets", is_done, do, partial(record.unlink, missing_ok=True))


def _report(recipe: Recipe) -> Work:
    page, record = recipe.run_folder / "report.html", recipe.run_folder / "report.json"

    def made_from() -> dict[str, str]:
        files = ["evaluation/scores.json", "audit.json", "model/model.json", *([CURVE] if recipe.curve else [])]
        return {file: file_hash(recipe.run_folder / file) for file in files} | {"recipe": recipe.model_dump_json()}

    def do(_: ProgressCallback) -> None:
        record.unlink(missing_ok=True)
        build_report(report_of(recipe), page)
        _record(record, made_from())

    return Work(
        "report",
        recipe.name,
        lambda: page.exists() and _recorded(record) == made_from(),
        do,
        partial(record.unlink, missing_ok=True),
    )


def report_of(recipe: Recipe) -> ReportInput:
    """What the report shows: the recipe's datasets, its departures from the paper, and its stand-ins by name."""
    stages = [(settings.stage, settings.departures) for settings in recipe.training.stages]
    return ReportInput(
        title=f"Harmon, recipe {recipe.name}",
        run=recipe.run_folder,
        datasets=tuple(dataset.root for dataset in datasets_of(recipe)),
        planted=planted(recipe.web) if recipe.web else (),
        departures=(
            *recipe.other_departures,
            *(Departure(*one) for one in changed_defaults(model_of(recipe))),
            *(
                Departure(f"{name}.{one.key}", one.paper, one.here)
                for name, changes in stages
                for one in departures(load_stage(name, changes), load_stage(name))
            ),
        ),
        stand_ins=recipe.stand_ins,
        goals=recipe.goals,
    )


def _audited(report: dict[str, Any], content_hash: str) -> bool:
    return bool(report.get("sound")) and report.get("content_hash") == content_hash


def _record(path: Path, said: dict[str, Any]) -> None:
    """Write what a step of the run folder says of itself; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.part")
    attempt.write_text(json.dumps(said, indent=1) + "\n")
    attempt.replace(path)


def _recorded(path: Path) -> dict[str, Any]:
    """What a step of the run folder said of itself, or nothing."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return record
