"""The commands that make latents and train a stage: latents, train. Nothing heavy is imported until one runs."""

import json
from pathlib import Path
from typing import Any

import click

from flows.terminal import shown_progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("dataset")
@click.option("--px", required=True, type=click.IntRange(1), help="Side of the pictures that are encoded.")
@click.option("--autoencoder", required=True, type=_PATH, metavar="FILE", help="Its weights, a safetensors file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def latents(dataset: str, px: int, autoencoder: Path, as_json: bool) -> None:
    """Write what the frozen autoencoder makes of every picture of DATASET as a column group, a row for each key.

    The group is named after the pixels and the autoencoder's hash. Its commit states the images and rows it was made
    of, and training refuses latents that are not those of the pictures at hand.
    """
    from harmon.latents import latents_group, write_latents
    from pipelines.dataset import Dataset
    from pipelines.errors import ConfigurationError
    from pipelines.steps import Progress

    opened = Dataset(dataset)
    if opened.head is None:
        raise ConfigurationError(f"{dataset} holds no dataset; name one that `harmon audit` knows.")
    with shown_progress("latents") as show:

        def progress(now: Progress) -> None:
            show(now.shards_done, now.shards_total)

        commit = write_latents(opened, px, autoencoder, progress)
    said: dict[str, Any] = {"dataset": str(opened.root), "group": latents_group(px, autoencoder)}
    said |= {"commit": commit.number, "content_hash": commit.content_hash}
    said |= {"rows": commit.rows_in, "encoded": commit.rows_out, "failed": dict(commit.failed)}
    if as_json:
        click.echo(json.dumps(said))
        return
    click.echo(f"{said['dataset']}: {commit.rows_out:,} of {commit.rows_in:,} rows in the group {said['group']}")
    for reason, count in sorted(commit.failed.items()):
        click.echo(f"  {reason}: {count:,} have none")


@click.command()
@click.argument("recipe", type=_PATH)
@click.option("--stage", required=True, metavar="STAGE", help="Which of the recipe's stages.")
@click.option("--resume", is_flag=True, help="Go on from the latest complete checkpoint.")
@click.option(
    "--stop-after",
    type=click.IntRange(1),
    metavar="N",
    help="Stop N train steps on, with a checkpoint of that step.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be trained, memory, time and the first batch; train not.")
@click.option("--gpus", type=click.IntRange(1), help="With --dry-run: so many GPUs, not the recipe's workers.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def train(
    recipe: Path,
    stage: str,
    resume: bool,
    stop_after: int | None,
    dry_run: bool,
    gpus: int | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train one STAGE of RECIPE, whose training sets and stages before it are there.

    A stage that is done is not touched. One that has begun goes on with --resume, with the next sample, on any number
    of workers.
    """
    from dataclasses import asdict

    from flows import train as training
    from flows.recipe import load_recipe

    loaded = load_recipe(recipe, settings)
    if dry_run:
        told = training.dry_run(loaded, stage, gpus)
        click.echo(json.dumps(told.to_json()) if as_json else "\n".join(told.lines()))
        return
    with shown_progress(stage) as show:
        number = training.stage_number(loaded, stage)
        steps = training.stage_of(loaded, number).steps
        stand = training.train_one(loaded, stage, resume, stop_after, lambda line: show(line["step"], steps))
    click.echo(json.dumps(asdict(stand)) if as_json else stand.sentence())
