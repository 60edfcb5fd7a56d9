"""The `harmon` command. Nothing heavy is imported until a command runs, so that help answers at once."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from flows.ablation_commands import ablate
from flows.catalogue_commands import catalog, download
from flows.cluster_commands import cluster
from flows.dataset_commands import diff, export, forget, show
from flows.deploy_commands import deploy
from flows.evaluate_commands import evaluate
from flows.filter_commands import filter_command
from flows.model_commands import ask, convert, generate
from flows.observe.logs import set_up_logs
from flows.observe_commands import metrics
from flows.plan_commands import plan, simulate
from flows.probe_commands import probe
from flows.recaption_commands import recaption
from flows.serve_commands import serve
from flows.train_commands import latents, train
from pipelines.errors import ConfigurationError, HarmonError


class Program(click.Group):
    """Turns our errors into one sentence on stderr and DESIGN's exit codes (1 no, 2 bad usage, 3 could not be done)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            set_up_logs()
            return super().invoke(ctx)
        except HarmonError as error:
            click.echo(f"harmon: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:  # a full disk, a folder that may not be written
            click.echo(f"harmon: {error}; mend that and run it again.", err=True)
            ctx.exit(3)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="harmon")
def main() -> None:
    """From dataset names to a trained, measured Harmon: one model that understands and generates images."""


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--from", "first", metavar="STEP", help="Start at this step; the steps before it must be done.")
@click.option("--until", "last", metavar="STEP", help="Stop after this step.")
@click.option("--redo", metavar="STEP", help="Do this step of the run folder again, and what rests on it.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def run(
    recipe: Path, first: str | None, last: str | None, redo: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Run RECIPE: every step that is not yet done, in order, as one Prefect flow."""
    from flows.recipe import load_recipe
    from flows.run import run_recipe

    outcome = run_recipe(load_recipe(recipe, settings), first=first, last=last, redo=redo)
    if as_json:
        click.echo(json.dumps(outcome.to_json()))
    else:
        click.echo(outcome.sentence())


@main.command()
@click.argument("dataset")
@click.option("--deep", is_flag=True, help="Read every byte again and compare it with its checksum.")
@click.option("--decode", default=0.0, metavar="SHARE", help="With --deep: decode this share of the images, 0 to 1.")
@click.option("--history", is_flag=True, help="List the commits instead: step, configuration, rows, bytes, who, where.")
@click.option("--repair", is_flag=True, help="Plan what would mend the dataset; --apply does it.")
@click.option("--apply", is_flag=True, help="With --repair: do what the plan says, then audit again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def audit(dataset: str, deep: bool, decode: float, history: bool, repair: bool, apply: bool, as_json: bool) -> None:
    """Prove that DATASET (a folder or s3://bucket/prefix) is what its manifest says; exit 0 when sound, 1 when not."""
    from flows.audit import audit_command, history_command, repair_command

    if apply and not repair:
        raise ConfigurationError("--apply belongs to --repair; add --repair, or look at its plan first.")
    if history and (deep or decode or repair):
        raise ConfigurationError("--history lists commits and checks nothing; leave the other options out.")
    if history:
        sys.exit(history_command(dataset, as_json))
    if repair:
        sys.exit(repair_command(dataset, deep, decode, apply, as_json))
    sys.exit(audit_command(dataset, deep, decode, as_json))


for command in (
    catalog,
    download,
    plan,
    simulate,
    metrics,
    recaption,
    filter_command,
    diff,
    show,
    forget,
    export,
    latents,
    train,
    convert,
    generate,
    ask,
    serve,
    evaluate,
    probe,
    ablate,
    cluster,
    deploy,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
