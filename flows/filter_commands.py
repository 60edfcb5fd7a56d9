"""`harmon filter`: rows worth training on, into a new dataset of shuffled shards, or told beforehand with --dry-run."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.terminal import shown_progress
from pipelines.errors import ConfigurationError, HarmonError

if TYPE_CHECKING:
    from filtering.recipe import FilterRecipe
    from pipelines.dataset import Dataset
    from pipelines.manifest import Commit
    from pipelines.steps import Progress, ProgressCallback

_PATH = click.Path(path_type=Path)


@click.command("filter")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--recipe", type=_PATH, help="YAML file: columns to make, duplicates to mark, rows to keep.")
@click.option("--where", metavar="CONDITION", help='What rows have to meet, as "aesthetic > 6 and ratio < 2".')
@click.option("--to", "target", metavar="DATASET", help="New dataset for the rows that stay.")
@click.option("--dry-run", is_flag=True, help="Say what would stay and why the rest would leave; write no dataset.")
@click.option("--columns-only", is_flag=True, help="Make the recipe's columns and mark duplicates; choose no rows.")
@click.option("--sheet", type=_PATH, help="With --dry-run: the contact sheet; a new DATASET.jpg here if left out.")
@click.option("--page", type=_PATH, help="With --dry-run: write an HTML page with funnel, histograms and pictures too.")
@click.option("--workers", default=1, show_default=True, help="Processes that write shards; no byte depends on it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def filter_command(
    datasets: tuple[str, ...],
    recipe: Path | None,
    where: str | None,
    target: str | None,
    dry_run: bool,
    columns_only: bool,
    sheet: Path | None,
    page: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Keep the rows of DATASET... that are worth training on, as globally shuffled shards of a new dataset.

    With neither --recipe nor --where: at least 200 pixels a side, within 3:1, each picture once. --where is a condition
    on columns: the dataset's groups, `source` columns, or ratio, side, pixels, caption_length; alone it is the one rule
    besides that each picture stays once, with --recipe it is one more.

    --dry-run reads the columns that stand; --columns-only makes a recipe's columns first. A dry run where no row would
    stay exits 1; writing a dataset of no rows cannot be done, which is exit 3.
    """
    if columns_only:
        if recipe is None or where is not None or dry_run or target is not None or sheet or page:
            raise ConfigurationError("filter: --columns-only goes with --recipe and nothing else; leave the rest out.")
        _make(datasets, recipe, as_json)
        return
    if recipe is None and where is None and not dry_run and target is None:
        raise ConfigurationError("filter: say what to keep with --recipe or --where, and where it goes with --to.")
    if (sheet or page) and not dry_run:
        raise ConfigurationError("--sheet and --page belong to --dry-run; add it, or leave them out.")
    if where is not None:
        from filtering.grammar import parse_condition

        parse_condition(where)
    if dry_run:
        sys.exit(_ask(datasets, recipe, where, sheet, page, as_json))
    _do(datasets, recipe, where, target, workers, as_json)


def _ask(
    names: tuple[str, ...], recipe: Path | None, where: str | None, sheet: Path | None, page: Path | None, as_json: bool
) -> int:
    from filtering.plan import plan
    from filtering.recipe import missing_groups
    from filtering.survey import contact_sheet, survey_page

    opened = _opened(names)
    told = _told(recipe, where)
    try:
        made = plan(opened, told.filled(opened))
    except ConfigurationError as problem:
        if lacking := missing_groups(told, opened):
            said = "; ".join(f"{name} lacks {', '.join(groups)}" for name, groups in lacking.items())
            raise HarmonError(
                f"{problem} The recipe's columns are not made yet: {said}; make them with --columns-only first."
            ) from problem
        raise
    path = sheet or _unused(opened[0].name)
    shown = contact_sheet(made, path)
    if page:
        survey_page(made, page, f"What would stay of {', '.join(dataset.name for dataset in opened)}")
    if as_json:
        counts = {reason: number for reason, number in made.counts.items() if reason}
        click.echo(
            json.dumps(
                {
                    "rows": made.rows,
                    "kept": made.kept,
                    "dropped": counts,
                    "alone": made.alone,
                    "cut": made.cut,
                    "short": made.short,
                    "kept_by_source": made.kept_by_source,
                    "sheet": str(path),
                    "page": str(page) if page else None,
                }
            )
        )
    else:
        click.echo("\n".join(made.lines()))
        click.echo(f"{path}: {shown} pictures, those that leave below the line" + (f"; {page}" if page else ""))
    return 0 if made.kept else 1


def _do(
    names: tuple[str, ...], recipe: Path | None, where: str | None, target: str | None, workers: int, as_json: bool
) -> None:
    from filtering.plan import shortfalls
    from filtering.select import select
    from pipelines.dataset import Dataset

    if target is None:
        raise ConfigurationError(
            "filter: name the new dataset with --to DATASET, or ask with --dry-run what would happen."
        )
    written, opened, told = Dataset(target), _opened(names), _told(recipe, where)
    with _bars() as progress:
        _columns(told, opened, progress)
        commit = select(opened, written, told.filled(opened), progress, workers)
    short = commit.context.get("short", {})
    if as_json:
        said = {"dataset": str(written.root), "commit": commit.number, "content_hash": commit.content_hash}
        counts = {"rows": commit.rows_in, "kept": commit.rows_out, "dropped": dict(commit.rejected), "short": short}
        click.echo(json.dumps(said | counts))
        return
    click.echo(f"{written.root}: {commit.rows_out:,} of {commit.rows_in:,} rows in {len(written.shard_numbers)} shards")
    for reason, number in sorted(commit.rejected.items(), key=lambda one: -one[1]):
        click.echo(f"  {reason}: {number:,} left")
    for line in shortfalls(short):
        click.echo(f"  {line}")


def _make(names: tuple[str, ...], recipe: Path, as_json: bool) -> None:
    opened, told = _opened(names), _told(recipe, None)
    with _bars() as progress:
        commits = _columns(told, opened, progress)
    if as_json:
        click.echo(json.dumps([{"step": c.step, "commit": c.number, "failed": dict(c.failed)} for c in commits]))
        return
    for commit in commits:
        failed = f", {sum(commit.failed.values()):,} failed" if commit.failed else ""
        click.echo(f"{commit.step}: {commit.rows_in:,} rows{failed}, commit {commit.number}")


def _columns(told: "FilterRecipe", opened: "list[Dataset]", progress: "ProgressCallback") -> "list[Commit]":
    from filtering.recipe import make_columns
    from harmon.training.launch import local_ray

    embed = told.columns.embed
    with local_ray(embed.actors[1] * embed.threads) if embed and embed.actors else nullcontext():
        return make_columns(told, opened, progress)


@contextmanager
def _bars() -> "Iterator[ProgressCallback]":
    """Progress of one step after the other."""
    step = ""
    with ExitStack() as bars:
        show: Callable[[int, int], None]

        def progress(now: "Progress") -> None:
            nonlocal step, show
            if (name := f"{now.step} {now.dataset}") != step:
                bars.close()
                step, show = name, bars.enter_context(shown_progress(name))
            show(now.shards_done, now.shards_total)

        yield progress


def _unused(name: str) -> Path:
    """A picture of this name in the current folder that is not there yet."""
    names = chain((f"{name}.jpg",), (f"{name}-{number}.jpg" for number in count(2)))
    return next(path for path in map(Path, names) if not path.exists())


def _opened(names: tuple[str, ...]) -> "list[Dataset]":
    from pipelines.dataset import Dataset

    opened = [Dataset(name) for name in names]
    if empty := [str(dataset.root) for dataset in opened if dataset.head is None]:
        raise ConfigurationError(f"{', '.join(empty)} holds no dataset; name one that `harmon audit` knows.")
    return opened


def _told(path: Path | None, where: str | None) -> "FilterRecipe":
    """The recipe in a file, or of the options alone."""
    from filtering.recipe import FilterRecipe, load_filter_recipe
    from filtering.selection import Selection

    if path is None:
        return FilterRecipe(selection=Selection() if where is None else Selection(geometry=None, where=where))
    recipe = load_filter_recipe(path)
    if where is None:
        return recipe
    both = where if recipe.selection.where is None else f"({recipe.selection.where}) and ({where})"
    return recipe.model_copy(update={"selection": recipe.selection.model_copy(update={"where": both})})
