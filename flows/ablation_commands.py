"""`harmon ablate`: every cell of a grid, and their table. Nothing heavy is imported at once."""

from pathlib import Path

import click

from pipelines.errors import ConfigurationError


@click.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--cell", metavar="NAME", help="Run this cell alone; needs --seed.")
@click.option("--seed", "seeds", type=click.IntRange(0), multiple=True, help="Run with this seed. [those of the grid]")
@click.option("--table", is_flag=True, help="Run nothing: write and print the table of what is done.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of every recipe.")
def ablate(grid: Path, cell: str | None, seeds: tuple[int, ...], table: bool, settings: tuple[str, ...]) -> None:
    """Run every cell of GRID that is not done, with each seed, and write one table.

    GRID is one of flows/recipes/ablations. What was killed goes on when it is run again.
    """
    from flows.ablation import Ablation

    ablation = Ablation.read(grid, settings)
    if cell is not None:
        if len(seeds) != 1:
            raise ConfigurationError("--cell needs one --seed; leave both out to run the whole grid.")
        ablation.run(cell, seeds[0])
        return
    if not table:
        ablation.run_all(click.echo, seeds)
    click.echo(ablation.write_table(), nl=False)
    click.echo(str(ablation.folder / "table.md"))
