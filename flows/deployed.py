"""The flows that `harmon deploy` registers. Each is a command of `harmon`: its parameters, typed and told for the UI,
are the command's options, and what it does is the command's own code.

Prefect reads a parameter's description from `Args`. What a flow needs is imported when it runs: to register it, its
parameters are enough.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from prefect.runtime import flow_run
from pydantic import Field

from flows.artifacts import show_made, show_page
from flows.flow_command import deployed, do_command
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from flows.work_item import Work

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


@deployed("run")
def run(
    recipe: str,
    from_step: str | None = None,
    until_step: str | None = None,
    redo_step: str | None = None,
    settings: tuple[str, ...] = (),
) -> None:
    """Run a recipe end to end: every step that is not done, in order. A gate that asks a person suspends the flow run.

    Args:
        recipe: Recipe file, as flows/recipes/demo.yaml, from the folder that the worker runs flows in.
        from_step: Start at this step, such as select or train; the steps before it must be done.
        until_step: Stop after this step.
        redo_step: Do this step of the run folder again, and what rests on it.
        settings: Overrides of the recipe, each as path.to.key=value.
    """
    from flows.flow_body import do_all
    from flows.recipe import load_recipe
    from flows.run import run_recipe

    loaded = load_recipe(Path(recipe), settings)
    begun = loaded.run_folder / "logs" / f"redo-{flow_run.get_id()}"

    def do(recipe: "Recipe", works: "Sequence[Work]") -> list[str]:
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()
        return do_all(recipe, works)

    # Begun anew after a gate or a crash, it keeps what was redone since. Prefect's run count tells of no resume.
    outcome = run_recipe(loaded, from_step, until_step, None if begun.exists() else redo_step, within=do)
    if outcome.report and not outcome.did:  # else the step that made it has shown it
        show_page(Path(outcome.report))


@deployed("download")
def download(
    source: str,
    dataset: str,
    folder: str | None = None,
    terms: str | None = None,
    engine: Literal["img2dataset", "native"] | None = None,
    rows_per_shard: Count = 1000,
    short_side: Count | None = None,
    settings: tuple[str, ...] = (),
) -> None:
    """Read a source into a dataset. Run again, it goes on where it was.

    Args:
        source: Name in the catalogue, a YAML file with an entry of your own, or a list of links.
        dataset: Where the dataset goes: a folder, or s3://bucket/prefix.
        folder: Folder with the publisher's files; they are fetched from the hub if left out.
        terms: YAML file whose key `terms` says who accepted what, such as a recipe.
        engine: What fetches links; img2dataset if left out.
        rows_per_shard: Rows of the source in each shard.
        short_side: Reduce larger images to this shorter side, in pixels; they are kept as they are if left out.
        settings: Overrides of the catalogue entry, each as path.to.key=value.
    """
    from flows.catalogue_commands import download as command

    do_command(
        command, Dataset(dataset).name, source, to=dataset, terms=terms, engine=engine, rows_per_shard=rows_per_shard,
        short_side=short_side, set=settings, **{"from": folder},
    )  # fmt: skip
    show_made(Dataset(dataset))


@deployed("recaption")
def recaption(
    dataset: str,
    prompt: str,
    model: str,
    endpoints: tuple[str, ...] = (),
    only: Literal["missing", "failed", "flagged", "changed", "all"] = "missing",
    where: str | None = None,
    limit: Count | None = None,
    sample: str | None = None,
    reuse: tuple[str, ...] = (),
    concurrency: Count = 640,
) -> None:
    """Have a model write captions for a dataset, as a new column group. What stands already is not asked again.

    Args:
        dataset: A folder, or s3://bucket/prefix.
        prompt: Version of the prompt, such as rewrite-v1, or a file PATH/VERSION.yaml.
        model: Folder of the model; with endpoints, the name it is served under.
        endpoints: Addresses of vLLM servers that run; the model is started beside the flow if left out.
        only: Which rows are asked, by what stands of them.
        where: Rows that fulfil this condition over the columns, in SQL.
        limit: The first so many of them.
        sample: This share of all rows, such as 1%; always the same ones.
        reuse: Datasets whose captions answer identical work.
        concurrency: Most requests in flight at one endpoint.
    """
    from flows.recaption_commands import recaption as command

    do_command(
        command, Dataset(dataset).name, dataset, prompt=prompt, model=model, endpoint=endpoints, only=only, where=where,
        limit=limit, sample=sample, reuse=reuse, concurrency=concurrency,
    )  # fmt: skip
    show_made(Dataset(dataset))


@deployed("filter")
def filter_rows(
    datasets: Annotated[tuple[str, ...], Field(min_length=1)],
    target: str,
    recipe: str | None = None,
    where: str | None = None,
    workers: Count = 1,
) -> None:
    """Keep the rows of datasets that are worth training on, as globally shuffled shards of a new dataset.

    Args:
        datasets: Datasets to choose from: folders, or s3://bucket/prefix.
        target: New dataset for the rows that stay.
        recipe: YAML file with columns to make, duplicates to mark and rows to keep.
        where: Condition on columns that rows have to meet, as "aesthetic > 6 and ratio < 2".
        workers: Processes that write shards; no byte depends on it.
    """
    from flows.filter_commands import filter_command as command

    do_command(command, Dataset(target).name, *datasets, to=target, recipe=recipe, where=where, workers=workers)
    show_made(Dataset(target))


@deployed("train")
def train(
    recipe: str,
    stage: str,
    resume: bool = True,
    stop_after: Count | None = None,
    settings: tuple[str, ...] = (),
) -> None:
    """Train one stage of a recipe, whose training sets and stages before it are there. Whoever starts it approves the
    gate before it.

    Args:
        recipe: Recipe file, from the folder that the worker runs flows in.
        stage: Which of the recipe's stages, such as stage1.
        resume: Go on from the latest complete checkpoint, if there is one.
        stop_after: Stop so many train steps on, with a checkpoint of that step; at the stage's end if left out.
        settings: Overrides of the recipe, each as path.to.key=value.
    """
    from flows.train_commands import train as command

    do_command(command, stage, recipe, stage=stage, resume=resume, stop_after=stop_after, set=settings)


@deployed("evaluate")
def evaluate(
    checkpoint: str,
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)],
    data: Annotated[tuple[str, ...], Field(min_length=1)],
    out: str = "runs/evaluation",
    compare: str | None = None,
    limit: Count | None = None,
    variants: tuple[str, ...] = (),
    examiners: tuple[str, ...] = (),
    workers: Count = 1,
    device: str = "cpu",
) -> None:
    """Measure a checkpoint on benchmarks and write report.html. Answers and pictures are kept: run again, nothing is
    asked or drawn twice.

    Args:
        checkpoint: Run folder, Hugging Face folder or .pth file.
        benchmarks: Names of benchmarks, such as pope or geneval.
        data: Folders of their published files, each for all or as NAME=FOLDER for one.
        out: Folder to write.
        compare: Measure a second checkpoint on the same items.
        limit: Only the first items, completed to whole groups.
        variants: As pope=adversarial or gqa=lmms-eval.
        examiners: Who looks at pictures, as NAME=VALUE; docs/evaluation.md tells.
        workers: Models at work; over 1, in Ray.
        device: cpu, or cuda on a worker that has GPUs.
    """
    from flows.evaluate_commands import evaluate as command

    try:
        do_command(
            command, Path(checkpoint).name, checkpoint, *benchmarks, data=data, out=out, compare=compare, limit=limit,
            variant=variants, examine=examiners, workers=workers, device=device,
        )  # fmt: skip
    finally:  # the page says, too, why there is no number
        if (page := Path(out) / "report.html").exists():
            show_page(page)


@deployed("audit")
def audit(datasets: tuple[str, ...] = (), recipe: str | None = None, deep: bool = True, decode: Share = 0.0) -> None:
    """Prove that datasets are what their manifests say. The flow run fails where one is unsound.

    Args:
        datasets: Datasets to audit: folders, or s3://bucket/prefix.
        recipe: Recipe file whose datasets are audited too, those that stand.
        deep: Read every byte again and compare it with its checksum.
        decode: Decode this share of the images, 0 to 1; only where deep.
    """
    from flows.cli import audit as command
    from flows.recipe import load_recipe
    from flows.work import datasets_of

    of_recipe = datasets_of(load_recipe(Path(recipe))) if recipe else []
    asked = [*datasets, *(str(dataset.root) for dataset in of_recipe if dataset.head)]
    if not asked:
        raise ConfigurationError("audit: there is nothing to audit; name datasets, or a recipe that has been run.")
    unsound = []
    for name in asked:
        try:
            do_command(command, Dataset(name).name, name, deep=deep, decode=decode if deep else None)
        except HarmonError as error:
            unsound.append(f"{name} ({error})")
    if unsound:
        raise HarmonError(f"The audit has not found sound: {'; '.join(unsound)}")
