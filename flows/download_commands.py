"""`harmon download DATASET --only …`: asks again for what a download did not bring.

Nothing heavy is imported until it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flows.terminal import shown_live

if TYPE_CHECKING:
    from pipelines.fetch import Engine
    from pipelines.redo import Only

ENGINES = ("img2dataset", "native")


@click.command()
@click.argument("dataset")
@click.option(
    "--only",
    type=click.Choice(["failed", "transient", "missing"]),
    required=True,
    help="failed: rows whose link gave no picture; transient: those of them that may work now; missing: open shards.",
)
@click.option("--list", "links", type=click.Path(path_type=Path), help="The list, if it is not where it was.")
@click.option("--engine", type=click.Choice(ENGINES), help="What fetches; as before if left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def download(
    dataset: str,
    only: Literal["failed", "transient", "missing"],
    links: Path | None,
    engine: Literal["img2dataset", "native"] | None,
    as_json: bool,
) -> None:
    """Ask again for rows that the download of DATASET (a folder or s3://bucket/prefix) did not bring."""
    again(dataset, only, links, engine, as_json)


def again(dataset: str, only: "Only", links: Path | None, engine: "Engine | None", as_json: bool) -> None:
    """What the command does; how it goes is shown on stderr, the outcome on stdout."""
    from pipelines.dataset import Dataset
    from pipelines.redo import redo

    with shown_live() as show:
        redone = redo(Dataset(dataset), only, links, engine, on_live=show)
    click.echo(json.dumps(redone.to_json()) if as_json else redone.sentence())
