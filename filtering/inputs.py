"""What a selection needs of the datasets that it reads: checked before any work, and named in its step's key."""

from collections.abc import Sequence

from filtering.expression import WORDS, names_in, resolve
from filtering.grammar import parse_condition
from filtering.rows import ShardRows, sources_of
from filtering.selection import Selection
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE
from pipelines.settings import nearest


def read_groups(dataset: Dataset, selection: Selection) -> tuple[str, ...]:
    """Every group of a dataset that decides the result."""
    asked = [SOURCE, IMAGES, *selection.groups, *(group for rule in selection.rules for group in rule.reads)]
    asked += [group for name in _column_names(selection) if (group := _group_of(dataset, name))]
    if selection.decontaminate is not None:
        asked += selection.decontaminate.reads
    if selection.take is not None:
        asked.append(selection.take.group)
    if selection.duplicates is not None:
        asked.append(selection.duplicates)
    return tuple(group for group in dict.fromkeys(asked) if dataset.entries(group))


def check_inputs(datasets: Sequence[Dataset], selection: Selection) -> None:
    """Raise ConfigurationError where the datasets lack what a selection needs, or have no source that it names.

    A dataset without images needs no column of pictures; one without the sources of a rule none of that rule's.
    """
    named = selection.sources
    held = {str(dataset.root): sources_of(dataset) for dataset in datasets} if named else {}
    known = sorted(set().union(*held.values())) if held else []
    for name in named:
        if name not in known:
            raise ConfigurationError(f"No row comes from a source '{name}'; {nearest(name, known)}.")
    for group in selection.groups:
        if not any(dataset.entries(group) for dataset in datasets):
            names = ", ".join(str(dataset.root) for dataset in datasets)
            raise ConfigurationError(f"None of {names} has the column group '{group}' that the selection carries.")
    for dataset in datasets:
        if not dataset.entries(IMAGES):
            continue
        for group, sources, what in _needed(selection):
            if not dataset.entries(group) and (not sources or held[str(dataset.root)] & set(sources)):
                raise ConfigurationError(
                    f"{dataset.root} has images but no column group '{group}' {what}; run the step that writes it "
                    "first, or name the `sources` that are meant."
                )
    _check_names(datasets, selection)


def _needed(selection: Selection) -> list[tuple[str, tuple[str, ...], str]]:
    """Group, sources that need it (empty: all) and what for."""
    found = [(group, rule.sources, "for a rule") for rule in selection.rules for group in rule.reads]
    if selection.decontaminate is not None:
        found += [(group, (), "for the decontamination") for group in selection.decontaminate.needs]
    if selection.take is not None and selection.take.group != SOURCE:
        found.append((selection.take.group, selection.take.sources, "to take the best rows by"))
    if selection.duplicates is not None:
        found.append((selection.duplicates, (), "of near duplicates, made from these datasets together"))
    return found


def _check_names(datasets: Sequence[Dataset], selection: Selection) -> None:
    """Every name of the condition and of `prefer` means a column, of each dataset with images or else of one."""
    pictured = [dataset for dataset in datasets if dataset.entries(IMAGES)]
    for name in _column_names(selection):
        for dataset in pictured or datasets[:1]:
            _group_of(dataset, name, strict=True)


def _column_names(selection: Selection) -> list[str]:
    """Names that stand for columns of groups, rather than for `source` columns or measures made from them."""
    named = [*(names_in(parse_condition(selection.where)) if selection.where else ()), *selection.prefer]
    return [name for name in dict.fromkeys(named) if name not in WORDS and name not in SOURCE_SCHEMA.names]


def _group_of(dataset: Dataset, name: str, strict: bool = False) -> str | None:
    """The group that a name means in a dataset; None where it has none, which `strict` raises."""
    numbers = dataset.shard_numbers
    if not numbers:
        return None
    try:
        return resolve(ShardRows(dataset, numbers[0]), name)[0]
    except ConfigurationError:
        if strict:
            raise
        return None
