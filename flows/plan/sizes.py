"""How many rows, pictures and bytes each dataset of a recipe has: counted where it stands, else as its source states.

Every number carries its basis, in words for a person.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flows.recipe import FilesSettings, Recipe
from pipelines.catalogue import Source, source
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE, Commit
from pipelines.photographs import LIST, Entries
from pipelines.settings import nearest, parse, read_yaml
from pipelines.web import WebSettings, planted

PICTURE_BYTES = 150_000
"""A picture fetched by link, where nothing else is known. An assumption: the five datasets of the catalogue whose
publishers state bytes and rows of pictures lie between 48 kB (CC3M) and 740 kB (JourneyDB) a picture."""
ROW_BYTES = 1_000
"""Columns of a row beside its picture. An assumption; the demo's have 300 to 700."""
LINKS_ALIVE = 0.8
"""Share of links that still give a picture. An assumption: lists of several years lose about a fifth."""


@dataclass(frozen=True)
class Size:
    """What a dataset holds, or is expected to."""

    rows: int
    pictures: int
    bytes: float
    basis: str
    """Where the numbers come from."""
    listed: int = 0
    """Rows that its source speaks of, before any was turned away; of a training set, 0."""
    dense: int = 0
    """Rows whose captions are rewritten."""
    stands: bool = False
    """Whether it was counted."""

    def kept(self, share: float) -> "Size":
        """With `share` of everything."""
        rows, pictures, dense = (round(share * one) for one in (self.rows, self.pictures, self.dense))
        return replace(self, rows=rows, pictures=pictures, dense=dense, bytes=share * self.bytes)


def source_size(recipe: Recipe, name: str, stated: Mapping[str, int] | None = None) -> Size:
    """Of a source's dataset, as it is when it has been downloaded. `stated` rows go before what the catalogue says.

    Raises:
        ConfigurationError: nobody says how many rows it has.
    """
    entry = source(name, settings=recipe.files.get(name, FilesSettings()).entry)
    dataset = Dataset(recipe.dataset(name))
    if recipe.web is not None and not entry.layouts:
        expected: Size | None = _published(recipe.web, name)
    else:
        expected = _stated(entry, stated or {})
    if dataset.head is not None:
        return _counted(dataset, entry, expected)
    if expected is None:
        raise ConfigurationError(
            f"Nobody says how many rows {name} has; state it with --rows {name}=COUNT, or in its entry."
        )
    return expected


def _counted(dataset: Dataset, entry: Source, expected: Size | None) -> Size:
    commits = dataset.commits()
    rows, pictures = dataset.total_rows, sum(one.rows for one in dataset.entries(IMAGES))
    rewritten = [commit for commit in commits if commit.step == "rewrite"]
    if rewritten:
        dense = _asked(rewritten[-1])
    else:
        dense = min(rows, expected.dense) if expected else rows if _is_rewritten(entry) else 0
    spent = float(sum(one.bytes for group in (IMAGES, SOURCE) for one in dataset.entries(group)))
    return Size(rows, pictures, spent, f"counted in {dataset.root}", commits[0].rows_in, dense, stands=True)


def _asked(commit: Commit) -> int:
    """Rows that a rewriting asked a model about."""
    return commit.rows_out + sum(number for reason, number in commit.failed.items() if reason != "not_dense")


def _published(web: WebSettings, name: str) -> Size:
    bad = sum(one.source == name for one in planted(web))
    turned_away = sum(one.source == name and one.step == "download" for one in planted(web))
    if name == "photographs":
        shown = len(parse(Entries, read_yaml(LIST), str(LIST)).photographs)
        rows = shown + bad - turned_away
        return Size(rows, rows, 290_000.0 * rows, "the photographs that installed packages carry", shown + bad)
    rows, pictures = web.classes + web.scenes + web.texts, web.classes + web.scenes
    basis = f"web: {web.classes:,} classes, {web.scenes:,} scenes, {web.texts:,} texts"
    return Size(rows, pictures, 3_900.0 * pictures, basis, rows + turned_away, web.scenes)


def _stated(entry: Source, stated: Mapping[str, int]) -> Size | None:
    """None: nobody says."""
    rows = stated.get(entry.name, entry.rows.count if entry.rows else None)
    if rows is None:
        return None
    links = all(layout.kind == "urls" for layout in entry.layouts)
    alive = LINKS_ALIVE if links else 1.0
    confirmed = entry.rows is not None and entry.rows.confirmed
    whose = "as you state" if entry.name in stated else "as its publisher says" if confirmed else "as others say of it"
    each = entry.bytes / rows if entry.bytes and not links else PICTURE_BYTES
    weight = (
        "its publisher's bytes" if entry.bytes and not links else f"{PICTURE_BYTES / 1e3:.0f} kB a picture (assumed)"
    )
    kept = round(alive * rows)
    basis = f"{rows:,} rows {whose}, {weight}" + (f", {alive:.0%} of links alive (assumed)" if links else "")
    return Size(kept, kept, kept * (each + ROW_BYTES), basis, rows, kept if _is_rewritten(entry) else 0)


def _is_rewritten(entry: Source) -> bool:
    return entry.captions.kind == "dense" or entry.captions.rewrite


def check_stated(recipe: Recipe, rows: Mapping[str, int], kept: Mapping[str, float]) -> None:
    """Raises ConfigurationError where something is stated of a source or a set that the recipe does not have."""
    for option, stated, known in (("--rows", rows, recipe.sources), ("--kept", kept, recipe.sets)):
        for name in stated:
            if name not in known:
                raise ConfigurationError(f"{option} {name}: the recipe has none; {nearest(name, list(known))}.")


def set_size(recipe: Recipe, name: str, sources: Mapping[str, Size], share: float) -> Size:
    """Of a training set: counted where it stands, else `share` of its sources' rows."""
    dataset = Dataset(recipe.dataset(name))
    if dataset.head is not None:
        pictures = sum(one.rows for one in dataset.entries(IMAGES))
        spent = float(sum(one.bytes for one in (*dataset.entries(IMAGES), *dataset.entries(SOURCE))))
        return Size(dataset.total_rows, pictures, spent, f"counted in {dataset.root}", stands=True)
    of = [sources[one] for one in recipe.sources_of(name)]
    whole = Size(sum(one.rows for one in of), sum(one.pictures for one in of), sum(one.bytes for one in of), "")
    return replace(whole.kept(share), basis=f"{share:.0%} of its sources' rows")
