"""`harmon evaluate`: so far the lists that keep benchmarks out of training data. Nothing heavy is imported at once."""

import json
from pathlib import Path

import click

from flows.terminal import shown_progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("benchmark")
@click.option("--data", "folder", type=_PATH, required=True, metavar="FOLDER", help="Its published files.")
@click.option("--hashes", "target", type=_PATH, required=True, metavar="F.parquet", help="New file to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def evaluate(benchmark: str, folder: Path, target: Path, as_json: bool) -> None:
    """Write what BENCHMARK is made of, so that `harmon filter` can keep it out of training data: benchmark, item,
    sha256, phash and prompt, a row for each picture.

    docs/benchmarks-data.md names the benchmarks and the files that each is read from.
    """
    from flows.hash_list import write_hash_list

    with shown_progress("items") as progress:
        listed = write_hash_list(benchmark, folder, target, progress)
    if as_json:
        told = {"benchmark": benchmark, "file": str(target), "items": listed.items, "pictures": listed.pictures}
        click.echo(json.dumps(told))
    else:
        click.echo(f"{target}: {listed.items:,} items of {benchmark} with {listed.pictures:,} different pictures")
