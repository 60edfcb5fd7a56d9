"""The `harmon` command. Nothing heavy is imported until a command runs, so that help answers at once."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from flows.model_commands import ask, convert, generate
from pipelines.errors import HarmonError


class Program(click.Group):
    """Turns our errors into one sentence on stderr and DESIGN's exit codes (1 no, 2 bad usage, 3 could not be done)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
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
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte again and compare it with its checksum.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def audit(dataset: Path, deep: bool, as_json: bool) -> None:
    """Prove that DATASET is what its manifest says; exit 0 when sound, 1 when not."""
    from pipelines.audit import audit as audit_dataset
    from pipelines.dataset import Dataset

    report = audit_dataset(Dataset(dataset), deep=deep)
    click.echo(json.dumps(report.to_json()) if as_json else "\n".join(report.lines()))
    sys.exit(0 if report.sound else 1)


for command in (convert, generate, ask):
    main.add_command(command)


if __name__ == "__main__":
    main()
