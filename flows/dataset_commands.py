"""The commands that look into a DATASET or take samples out of it: diff, show, forget, export.

DATASET is a folder or s3://bucket/prefix; what a command writes beside it is a local file. Nothing heavy is
imported until one runs.
"""

import contextlib
import json
import sys
import threading
from pathlib import Path

import click

from pipelines.errors import ConfigurationError
from pipelines.location import S3

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("dataset")
@click.argument("versions", nargs=-1, required=True, metavar="A B | OTHER")
@click.option("--captions", nargs=2, metavar="OLD NEW", help="Compare the texts of these two caption groups.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def diff(dataset: str, versions: tuple[str, ...], captions: tuple[str, str] | None, as_json: bool) -> None:
    """Compare commits A and B of DATASET, or DATASET with the dataset OTHER, sample by sample.

    Exit 0 when they are equal, 1 when they differ. In --captions, `source` stands for the captions that the
    samples came with.
    """
    from pipelines.diff import diff as compare
    from pipelines.diff import versions as named

    difference = compare(*named(dataset, versions), captions=captions)
    click.echo(json.dumps(difference.to_json()) if as_json else "\n".join(difference.lines()))
    sys.exit(0 if difference.equal else 1)


@click.command()
@click.argument("dataset")
@click.option("-o", "--out", type=_PATH, help="HTML file to write; DATASET's name + .html if left out.")
@click.option("--samples", default=200, show_default=True, help="Samples in the gallery.")
@click.option("--lineage", is_flag=True, help="Draw the graph of commits across the datasets of the folder.")
@click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1 until interrupted.")
@click.option("--port", default=0, help="Port to serve on; any free one if left out.")
def show(dataset: str, out: Path | None, samples: int, lineage: bool, serve: bool, port: int) -> None:
    """Write a self-contained page of DATASET: funnel, reasons, a searchable gallery, distributions, commits."""
    from pipelines.dataset import Dataset
    from pipelines.show import ShowSettings, serve_page, write_page

    opened, settings = Dataset(dataset), ShowSettings(samples, lineage)
    if not serve or out:
        click.echo(str(write_page(opened, settings, _local(out or Path(f"{opened.name}.html")))))
    if serve:
        with serve_page(opened, settings, port) as address:
            click.echo(f"{address} (Ctrl-C ends it)")
            wait_for_interrupt()


def wait_for_interrupt() -> None:
    """Return when a person presses Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


@click.command()
@click.argument("dataset")
@click.option("--keys", type=_PATH, help="File of sample keys, one a line.")
@click.option("--urls", type=_PATH, help="File of links, one a line, spelled as in the dataset.")
@click.option("--sha256", type=_PATH, help="File of SHA-256 of the bytes as fetched, one a line.")
@click.option("--follow", is_flag=True, help="Forget them in every dataset made from DATASET too.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def forget(
    dataset: str,
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


@click.command()
@click.argument("dataset")
@click.argument("form", type=click.Choice(["croissant", "openlineage"]))
@click.option("-o", "--out", type=_PATH, help="File to write; stdout if left out.")
def export(dataset: str, form: str, out: Path | None) -> None:
    """Describe DATASET for other tools, with nothing but what its manifests say.

    A Croissant description belongs into DATASET's own folder as it is published: its paths are relative to it.
    """
    from pipelines.croissant import croissant
    from pipelines.dataset import Dataset
    from pipelines.openlineage import openlineage

    target = None if out is None else _local(out)
    document = croissant(Dataset(dataset)) if form == "croissant" else openlineage(Dataset(dataset))
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if target is None:
        click.echo(text)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")


def _local(out: Path) -> Path:
    """`out`, if it is a local file. Raises ConfigurationError for a URL, which would become a folder named s3:."""
    if S3.fullmatch(str(out)):
        raise ConfigurationError(f"-o {out} is no local file; write to one, then copy it there")
    return out
