"""The commands that know datasets by name: catalog tells of them, download makes one a DATASET.

Nothing heavy is imported until one runs.
"""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from pipelines.errors import ConfigurationError

if TYPE_CHECKING:
    from pipelines.catalogue import Source
    from pipelines.fetch import Engine, LiveCallback
    from pipelines.redo import Only
    from pipelines.terms import EffectiveTerms
    from pipelines.traffic import Live

_PATH = click.Path(path_type=Path)
OWN_LINKS = "own-links"
MISSING = "image_missing"  # reason of rows whose image is not there


@click.command()
@click.argument("name", required=False)
@click.option("--recipe", type=_PATH, help="List what this recipe uses, with its effective terms.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def catalog(name: str | None, recipe: Path | None, as_json: bool) -> None:
    """List the datasets that the system knows, with size, terms and use; or explain the one called NAME."""
    from pipelines.catalogue import names, source
    from pipelines.terms import effective_of

    if name and recipe:
        raise ConfigurationError("catalog explains one NAME or lists a --recipe; leave one of them out.")
    if name:
        entry = source(name)
        click.echo(json.dumps(entry.model_dump(mode="json")) if as_json else "\n".join(_explained(entry)))
        return
    if recipe is None:
        entries = [source(one) for one in names()]
        if as_json:
            click.echo(json.dumps([entry.model_dump(mode="json") for entry in entries]))
        else:
            click.echo("\n".join(_listed(entries)))
        return
    from flows.recipe import load_recipe

    loaded = load_recipe(recipe, ())
    entries = [source(one) for one in loaded.sources]
    terms = effective_of(entries, loaded.terms)
    if as_json:
        listed = [entry.model_dump(mode="json") for entry in entries]
        click.echo(json.dumps({"sources": listed, "effective_terms": terms.to_json()}))
    else:
        click.echo("\n".join([*_listed(entries), "", *terms.lines()]))


@click.command()
@click.argument("name", metavar="NAME|ENTRY|LIST|DATASET")
@click.option("--to", "to", metavar="DATASET", help="Folder or s3://bucket/prefix of the dataset.")
@click.option(
    "--only",
    "again",
    type=click.Choice(["failed", "transient", "missing"]),
    help="Ask again for what the download of DATASET did not bring. failed: rows whose link gave no picture; "
    "transient: those of them that may work now; missing: open shards.",
)
@click.option("--list", "links", type=_PATH, help="With --only: the list, if it is not where it was.")
@click.option("--engine", type=click.Choice(["img2dataset", "native"]), help="What fetches links; img2dataset if new.")
@click.option(
    "--from", "folder", type=_PATH, help="Folder with the publisher's files; fetched from the hub if left out."
)
@click.option(
    "--files", "only", multiple=True, metavar="PATTERN", help="Read only files that match, as in 'stage3/**/*.tar'."
)
@click.option(
    "--without", multiple=True, metavar="PATTERN", help="Leave out files that match, such as a tar that is damaged."
)
@click.option("--terms", "terms", type=_PATH, help="YAML whose key `terms` says who accepted what, such as a recipe.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override path.to.key of the entry.")
@click.option("--licence", help="Licence of a list, folder or entry of your own that does not state one.")
@click.option(
    "--fetch",
    "fetching",
    multiple=True,
    metavar="KEY=VALUE",
    help="How links are fetched, as in threads=64 or outage_share=1 (docs/download.md); with --only, too.",
)
@click.option("--rows-per-shard", default=1000, show_default=True, help="Rows of the source in each shard.")
@click.option("--short-side", type=int, help="Reduce larger images to this shorter side; kept as they are if left out.")
@click.option("--allow", multiple=True, metavar="NETWORK", help="Network to open besides the public internet.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def download(
    name: str,
    to: str | None,
    again: Literal["failed", "transient", "missing"] | None,
    links: Path | None,
    engine: Literal["img2dataset", "native"] | None,
    folder: Path | None,
    only: tuple[str, ...],
    without: tuple[str, ...],
    terms: Path | None,
    settings: tuple[str, ...],
    licence: str | None,
    fetching: tuple[str, ...],
    rows_per_shard: int,
    short_side: int | None,
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Read a source into DATASET: NAME of the catalogue, an ENTRY of your own (a YAML file), or a LIST of links
    (.parquet, .csv, .tsv, .jsonl, .txt). Run again, it goes on where it was. With --only, ask again for rows that the
    download of DATASET did not bring."""
    if again:
        _ask_again(name, again, links, engine, fetching, as_json)
        return
    if to is None:
        raise ConfigurationError(f"where {name} is to be read to is not said; add --to DATASET.")
    from flows.terminal import shown_live, shown_progress
    from pipelines import catalogue
    from pipelines.acquire import Acquisition, acquire
    from pipelines.dataset import Dataset
    from pipelines.download import DownloadSettings
    from pipelines.fetch import FetchSettings
    from pipelines.settings import parse, read_yaml
    from pipelines.steps import Progress
    from pipelines.terms import accepted_in, effective_terms

    settings += (f"licence={json.dumps(licence)}",) if licence else ()
    source, folder, only = _named(name, folder, only, settings)
    source = catalogue.without(source, without)
    limits = {"short_side": short_side}
    what = {"rows_per_shard": rows_per_shard, "allow": list(allow), "limits": limits}
    what |= {"engine": engine} if engine else {}
    accepted = accepted_in(read_yaml(terms), str(terms)) if terms else {}
    how = parse(FetchSettings, _fetch_settings(fetching), "--fetch")
    asked = Acquisition(parse(DownloadSettings, what, "harmon download"), accepted, folder, only, how)
    with contextlib.ExitStack() as shown:
        one_at_a_time = sys.stderr.isatty()
        bars: dict[str, Callable[[int, int], None]] = {}
        lives: list[LiveCallback] = []

        def show(label: str, done: int, total: int) -> None:
            if label not in bars:
                if one_at_a_time:
                    shown.close()
                bars[label] = shown.enter_context(shown_progress(label))
            bars[label](done, total)

        def tell(progress: Progress) -> None:
            if not (lives and one_at_a_time):
                show(f"{source.name}, shards", progress.shards_done, progress.shards_total)

        def draw(live: "Live") -> None:
            if not lives:
                if one_at_a_time:
                    shown.close()  # rates and hosts take the place of any bar
                lives.append(shown.enter_context(shown_live()))
            lives[0](live)

        commit = acquire(Dataset(to), source, asked, tell, partial(show, f"{source.name}, bytes from the hub"), draw)
    dataset = Dataset(to)
    binding = effective_terms(commit.terms)
    if as_json:
        told = {"dataset": str(dataset.root), "commit": commit.number, "content_hash": commit.content_hash}
        told |= {"rows": dataset.total_rows, "rejected": _rejected(dataset), "effective_terms": binding.to_json()}
        click.echo(json.dumps(told))
    else:
        click.echo("\n".join(_told(dataset, source, commit.number, binding)))


def _fetch_settings(given: Sequence[str]) -> dict[str, object]:
    """The values of --fetch, not judged yet."""
    from pipelines.settings import with_override

    values: dict[str, object] = {}
    for setting in given:
        with_override(values, setting, "--fetch")
    return values


def _ask_again(
    name: str, only: "Only", links: Path | None, engine: "Engine | None", fetching: Sequence[str], as_json: bool
) -> None:
    """How it goes is shown on stderr, the outcome on stdout."""
    from flows.terminal import shown_live
    from pipelines.dataset import Dataset
    from pipelines.redo import redo

    with shown_live() as show:
        redone = redo(Dataset(name), only, links, engine, on_live=show, how=_fetch_settings(fetching))
    click.echo(json.dumps(redone.to_json()) if as_json else redone.sentence())


def _named(
    name: str, folder: Path | None, only: tuple[str, ...], settings: tuple[str, ...]
) -> "tuple[Source, Path | None, tuple[str, ...]]":
    """The entry that NAME, a YAML file or a list of links means, with the folder and files to read."""
    from pipelines import catalogue
    from pipelines.readers.links import ENDINGS

    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.resolve().parent != catalogue.FOLDER.resolve():
            _check_own_name(name, path.stem)
        return catalogue.entry(path, settings), folder, only
    if path.suffix in ENDINGS:
        if folder or only:
            raise ConfigurationError(f"{name} is the list itself; --from and --files have no meaning with it.")
        if not path.is_file():
            raise ConfigurationError(f"there is no list {name}; name a file, or a source that `harmon catalog` lists.")
        slug = re.sub(r"[^a-z0-9.-]+", "-", path.stem.lower()).strip("-.")[:60] or "links"
        _check_own_name(name, slug)
        entry = catalogue.source(OWN_LINKS, settings=(*settings, f"layouts.0.files=[{json.dumps(path.name)}]"))
        return entry.model_copy(update={"name": slug}), path.parent, ()
    return catalogue.source(name, settings=settings), folder, only


def _check_own_name(file: str, name: str) -> None:
    """Refuse a list or entry of one's own that would pass for a source of the catalogue, whose terms it has not."""
    from pipelines.catalogue import names

    if name in names():
        raise ConfigurationError(
            f"{file} would be read under the name '{name}', which a source of the catalogue has, under its own terms; "
            f"rename the file, or run `harmon download {name}`."
        )


def _listed(entries: "list[Source]") -> list[str]:
    rows = [("name", "rows", "bytes", "terms", "stages", "captions")]
    for entry in entries:
        count = f"{'' if entry.rows.confirmed else '~'}{_short(entry.rows.count)}" if entry.rows else "-"
        stages = ",".join(map(str, entry.stages)) or "-"
        terms = ", ".join((entry.terms, *(one for one in entry.restrictions if one != entry.terms)))
        rows.append(
            (entry.name, count, _short(entry.bytes) + "B" if entry.bytes else "-", terms, stages, entry.captions.kind)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for number, entry in enumerate(entries):  # below its row, what each is for
        lines.insert(2 * number + 2, f"    {entry.role}")
    return [*lines, "", "harmon catalog NAME explains one; ~ marks a count that its publisher does not confirm"]


def _explained(entry: "Source") -> list[str]:
    from pipelines.layouts import patterns

    lines = [f"{entry.name}: {entry.title}", "", f"  use        {entry.role}"]
    lines.append(f"  stages     {', '.join(map(str, entry.stages)) or 'none of 1 to 3'}")
    lines.append(
        f"  captions   {entry.captions.kind}, by {entry.captions.author}"
        + (", rewritten" if entry.captions.rewrite else "")
    )
    lines += [f"             {part.kind}, by {part.author}: {', '.join(part.images)}" for part in entry.captions.parts]
    if entry.rows:
        lines.append(f"  rows       {entry.rows.count:,}" + ("" if entry.rows.confirmed else " (unconfirmed)"))
    if entry.bytes:
        lines.append(f"  bytes      {entry.bytes:,}")
    lines.append(f"  licence    {entry.licence}")
    lines.append(f"  terms      {', '.join(dict.fromkeys((entry.terms, *entry.restrictions)))}")
    if entry.needs_acceptance:
        lines.append(f"             refused until accepted: {entry.agreement}")
    if entry.hub:
        lines.append(f"  hub        {entry.hub} at {entry.revision}, pinned at the first download")
    lines += [f"  beside     {one}" for one in entry.beside]
    for layout in entry.layouts:
        lines.append(f"  read from  {', '.join(patterns(layout))} ({layout.kind})")
        lines += [f"  left out   {glob}" for glob in layout.without]
    if entry.override:
        lines.append(f"  captions of {', '.join(entry.override.of)}, joined by {entry.override.by}")
    lines += [f"  trap       {one}" for one in entry.traps]
    lines += [f"  unchecked  {one}" for one in entry.unconfirmed]
    return lines


def _told(dataset: object, source: "Source", number: int, binding: "EffectiveTerms") -> list[str]:
    from pipelines.dataset import Dataset

    assert isinstance(dataset, Dataset)
    lost = _rejected(dataset)
    lines = [f"{dataset.root}: commit {number}, {dataset.total_rows:,} rows, {sum(lost.values()):,} rejected"]
    for reason, count in sorted(lost.items(), key=lambda one: -one[1]):
        lines.append(f"  {reason}: {count:,}")
        if reason == MISSING:
            lines += [f"    below {folder}/: {number:,}" for folder, number in _missing(dataset).most_common(5)]
    seen = dataset.total_rows + sum(lost.values())
    if source.rows and not source.override and seen != source.rows.count:
        lines.append(f"  the publisher speaks of {source.rows.count:,} rows; these files have {seen:,}")
    return [*lines, *binding.lines()]


def _missing(dataset: object) -> Counter[str]:
    """Images that were not there, by the first folder of their path: which part of a source is not here."""
    from pipelines.dataset import Dataset

    assert isinstance(dataset, Dataset)
    rows = dataset.rejects().select(["reason", "detail"]).to_pylist()
    return Counter(row["detail"].partition("/")[0] for row in rows if row["reason"] == MISSING and "/" in row["detail"])


def _rejected(dataset: object) -> dict[str, int]:
    from pipelines.dataset import Dataset
    from pipelines.redo import rejected_now

    assert isinstance(dataset, Dataset)
    return rejected_now(dataset)


def _short(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
