"""The steps of a recipe, in order: for each, whether it is done, and how it is done.

A dataset's step asks the dataset for a commit of its key, a training stage its folder for done.json; the audit and the
report compare what they were made from. So a step's answer needs every step before it, and the first one that is not
done ends the asking.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from filtering.aesthetic import aesthetic_step, load_head, score_aesthetics
from filtering.clarity import clarity_step, score_clarity
from filtering.embedding import Clip, embed_images, embed_step
from filtering.select import select, select_step
from filtering.selection import Selection
from flows.caption_groups import published_groups, rewrite_of
from flows.pictures import latents_needed, understanding_file
from flows.recipe import AestheticSettings, FilesSettings, Recipe, part
from flows.report.build import build_report
from flows.report.inputs import ReportInput
from flows.terminal import shown_live
from flows.training_work import describe, description, model_of, stage_works
from flows.work_item import Work
from harmon.evaluation.curve import CURVE, write_curve
from harmon.evaluation.run import EvaluationConfig, evaluate_run, is_evaluated
from harmon.latents import latents_step, write_latents
from harmon.model.config import changed_defaults
from harmon.trained import is_described
from harmon.training.job import file_hash
from harmon.training.launch import ray_session
from harmon.training.loop import final_weights
from harmon.training.stage import Departure, departures, load_stage
from pipelines.acquire import Acquisition, acquire, is_acquired
from pipelines.audit import audit
from pipelines.catalogue import Source, source
from pipelines.dataset import Dataset
from pipelines.download import download, download_step
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.loopback import serve
from pipelines.steps import ProgressCallback, Step, StepRun
from pipelines.terms import check_accepted
from pipelines.tombstones import standing
from pipelines.web import WebSettings, is_published, planted, publish
from recaption.captions import write_captions
from recaption.engines import Engine, open_engine


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
        *(_latents(recipe, *needed) for needed in latents_needed(recipe)),
        *(work for number in range(len(recipe.training.stages)) for work in stage_works(recipe, number, ray)),
        *([_curve(recipe, recipe.curve)] if recipe.curve else []),
        _evaluate(recipe),
        _audit(recipe),
        _report(recipe),
    ]


def datasets_of(recipe: Recipe) -> list[Dataset]:
    """Every dataset that the recipe writes."""
    return [Dataset(recipe.dataset(name)) for name in (*recipe.sources, *recipe.sets)]


def selection_of(recipe: Recipe, name: str) -> Selection:
    """The selection of training set `name`, which carries the captions that its sources have been given along."""
    selection, sources = recipe.sets[name], recipe.sources_of(name)
    rewritten = any(one in recipe.recaption.datasets for one in sources)
    groups = [rewrite_of(recipe, prompt).group for prompt in recipe.recaption.prompts] if rewritten else []
    groups += published_groups(recipe, sources).values()
    return selection.model_copy(update={"carry": (*selection.carry, *dict.fromkeys(groups))})


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

    return Work("download", dataset.name, lambda: is_acquired(dataset, entry, asked), do, shows=dataset)


def _captions(recipe: Recipe, name: str, captions: str) -> Work:
    """Published captions joined to the rows of a source."""
    files = recipe.files.get(captions, FilesSettings())
    entry, dataset = source(captions, settings=files.entry), Dataset(recipe.dataset(name))
    check_accepted(entry, recipe.terms)
    folder = None if files.folder is None else Path(files.folder).absolute()
    asked = Acquisition(recipe.sources[name], dict(recipe.terms), folder, files.only, recipe.fetch)

    def do(progress: ProgressCallback) -> None:
        acquire(dataset, entry, asked, progress)

    return Work("captions", f"{name}@{captions}", lambda: captions in published_groups(recipe), do, shows=dataset)


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


def _latents(recipe: Recipe, name: str, px: int, autoencoder: Path) -> Work:
    dataset = Dataset(recipe.dataset(name))

    def do(progress: ProgressCallback) -> None:
        write_latents(dataset, px, autoencoder, progress)

    seen = autoencoder == understanding_file(recipe) and recipe.training.understanding
    subject = f"{name}@{px}px" + (f"-{seen.encoder}" if seen else "")
    return _dataset_work("latents", dataset, lambda: latents_step(dataset, px, autoencoder), do, subject)


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
    return Work(
        name, subject or dataset.name, lambda: StepRun(dataset, step()).committed is not None, do, shows=dataset
    )


def _evaluate(recipe: Recipe) -> Work:
    stages = len(recipe.training.stages)

    def is_done() -> bool:
        described = is_described(recipe.run_folder, description(recipe, stages))
        return described and is_evaluated(recipe.run_folder, recipe.evaluation)

    def do(_: ProgressCallback) -> None:
        describe(recipe, stages)
        evaluate_run(recipe.run_folder, recipe.evaluation)

    def undo() -> None:
        shutil.rmtree(recipe.run_folder / "evaluation", ignore_errors=True)

    return Work("evaluate", recipe.name, is_done, do, undo)


def _curve(recipe: Recipe, config: EvaluationConfig) -> Work:
    page, record = recipe.run_folder / CURVE, recipe.run_folder / "curve.json"

    def made_from() -> dict[str, Any]:
        described = description(recipe, len(recipe.training.stages))
        folders = [recipe.run_folder / "train" / stage.folder for stage in described.stages]
        return {
            "run": described.model_dump(mode="json"),
            "weights": [file_hash(final_weights(folder)) for folder in folders],
            "of": config.model_dump(mode="json"),
        }

    def do(_: ProgressCallback) -> None:
        describe(recipe, len(recipe.training.stages))
        record.unlink(missing_ok=True)
        write_curve(recipe.run_folder, config)
        _record(record, made_from())

    return Work(
        "curve",
        recipe.name,
        lambda: page.exists() and _recorded(record) == made_from(),
        do,
        partial(record.unlink, missing_ok=True),
        shows=page,
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
        shows=page,
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
