"""The `harmon` command. Nothing heavy is imported until a command runs, so that help answers at once."""

import json
import sys
from pathlib import Path
from typing import Any

import click

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
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def run(recipe: Path, first: str | None, last: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Run RECIPE: every step that is not yet done, in order, as one Prefect flow."""
    from flows.recipe import load_recipe
    from flows.run import run_recipe

    outcome = run_recipe(load_recipe(recipe, settings), first=first, last=last)
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


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("versions", nargs=-1, required=True, metavar="A B | OTHER")
@click.option("--captions", nargs=2, metavar="OLD NEW", help="Compare the texts of these two caption groups.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def diff(dataset: Path, versions: tuple[str, ...], captions: tuple[str, str] | None, as_json: bool) -> None:
    """Compare commits A and B of DATASET, or DATASET with the dataset OTHER, sample by sample.

    Exit 0 when they are equal, 1 when they differ. In --captions, `source` stands for the captions that the
    samples came with.
    """
    from pipelines.diff import diff as compare
    from pipelines.diff import versions as named

    difference = compare(*named(dataset, versions), captions=captions)
    click.echo(json.dumps(difference.to_json()) if as_json else "\n".join(difference.lines()))
    sys.exit(0 if difference.equal else 1)


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="HTML file to write; DATASET's name + .html if left out."
)
@click.option("--samples", default=200, show_default=True, help="Samples in the gallery.")
@click.option("--lineage", is_flag=True, help="Draw the graph of commits across the datasets of the folder.")
@click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1 until interrupted.")
@click.option("--port", default=0, help="Port to serve on; any free one if left out.")
def show(dataset: Path, out: Path | None, samples: int, lineage: bool, serve: bool, port: int) -> None:
    """Write a self-contained page of DATASET: funnel, reasons, a searchable gallery, distributions, commits."""
    from pipelines.dataset import Dataset
    from pipelines.show import ShowSettings, serve_page, write_page

    opened, settings = Dataset(dataset), ShowSettings(samples, lineage)
    if not serve or out:
        click.echo(str(write_page(opened, settings, out or Path(f"{opened.name}.html"))))
    if serve:
        with serve_page(opened, settings, port) as address:
            click.echo(f"{address} (Ctrl-C ends it)")
            wait_for_interrupt()


def wait_for_interrupt() -> None:
    """Return when a person presses Ctrl-C."""
    import contextlib
    import threading

    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--keys", type=click.Path(path_type=Path), help="File of sample keys, one a line.")
@click.option("--urls", type=click.Path(path_type=Path), help="File of links, one a line, spelled as in the dataset.")
@click.option("--sha256", type=click.Path(path_type=Path), help="File of SHA-256 of the bytes as fetched, one a line.")
@click.option("--follow", is_flag=True, help="Forget them in every dataset made from DATASET too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def forget(
    dataset: Path,
    keys: Path | None,
    urls: Path | None,
    sha256: Path | None,
    follow: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete samples from DATASET for good, and keep later downloads from bringing them back.

    Whatever was made from them (parent_key) goes too. Datasets of the same folder that still hold them
    afterwards are listed.
    """
    from pipelines.dataset import Dataset
    from pipelines.forget_report import run_forget
    from pipelines.request import read_requests

    request = read_requests(keys=keys, urls=urls, sha256=sha256)
    report = run_forget(Dataset(dataset), request, follow=follow, dry_run=dry_run)
    click.echo(json.dumps(report.to_json()) if as_json else "\n".join(report.lines()))


@main.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.argument("form", type=click.Choice(["croissant", "openlineage"]))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write; stdout if left out.")
def export(dataset: Path, form: str, out: Path | None) -> None:
    """Describe DATASET for other tools, with nothing but what its manifests say.

    A Croissant description belongs into DATASET's own folder as it is published: its paths are relative to it.
    """
    from pipelines.croissant import croissant
    from pipelines.dataset import Dataset
    from pipelines.openlineage import openlineage

    document = croissant(Dataset(dataset)) if form == "croissant" else openlineage(Dataset(dataset))
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")


@main.command()
@click.argument("prompt")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Run folder, such as runs/demo.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="PNG file to write.")
@click.option("--seed", default=0, show_default=True, help="Seed of the picture.")
@click.option("--px", type=int, help="Side in pixels; as the last stage trained when left out.")
def generate(prompt: str, checkpoint: Path, out: Path, seed: int, px: int | None) -> None:
    """Draw the picture that PROMPT describes, with the sampling that the run was measured with."""
    from harmon.generate import generate_file

    click.echo(str(generate_file(prompt, checkpoint, out, seed=seed, px=px)))


@main.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("question")
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Run folder, such as runs/demo.")
def ask(image: Path, question: str, checkpoint: Path) -> None:
    """Answer QUESTION about the picture in file IMAGE."""
    from harmon.ask import ask_file

    click.echo(ask_file(image, question, checkpoint))


if __name__ == "__main__":
    main()
