"""`harmon metrics`: what a recipe's steps and stages did and do, for Prometheus. Nothing heavy is imported at once."""

import threading
from pathlib import Path

import click

from pipelines.errors import ConfigurationError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", type=_PATH)
@click.option("--port", type=click.IntRange(0, 65535), help="Serve /metrics there until interrupted; 0: a free one.")
@click.option("--address", default="127.0.0.1", show_default=True, help="With --port: 0.0.0.0 for other machines.")
@click.option("--textfile", type=_PATH, metavar="FILE", help="Write them once, for node-exporter's textfile collector.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the recipe.")
def metrics(recipe: Path, port: int | None, address: str, textfile: Path | None, settings: tuple[str, ...]) -> None:
    """Print what RECIPE's steps and training stages did and do, as Prometheus reads it; or serve it.

    It is read from receipts, lines of metrics and times, so it may run anywhere that sees those, at any time.
    """
    from flows.observe.exporter import served, text_of, write_textfile
    from flows.recipe import load_recipe

    if port is not None and textfile is not None:
        raise ConfigurationError("--port serves and --textfile writes once; leave one of them out.")
    read = load_recipe(recipe, settings)
    if textfile is not None:
        write_textfile(read, textfile)
    elif port is None:
        click.echo(text_of(read).decode(), nl=False)
    else:
        with served(read, port, address) as found:
            click.echo(f"metrics of {read.name}: http://{address}:{found}/metrics", err=True)
            threading.Event().wait()
