"""The file that `harmon filter --recipe` reads: columns to make first, duplicates to mark, rows to keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filtering.aesthetic import aesthetic_step, load_head, score_aesthetics
from filtering.clarity import GROUP as CLARITY
from filtering.clarity import clarity_step, score_clarity
from filtering.duplicates import Duplicates, duplicates_group, mark_duplicates
from filtering.embedding import ARCHITECTURE, Clip, Pool, Precision, embed_images, embed_step
from filtering.groups import check_free, full_name
from filtering.header import GROUP as HEADER
from filtering.header import header_step, write_headers
from filtering.language import language_group, language_step, write_languages
from filtering.phash import GROUP as HASH
from filtering.phash import hash_step, write_hashes
from filtering.preprocess import Resizer
from filtering.probe import load_probe, probe_step, score_probe
from filtering.rows import sources_of
from filtering.selection import Selection
from filtering.shipped import CLIP, Shipped, has_embeddings_of, shipped_step, write_shipped
from filtering.similarity import score_similarity, similarity_group, similarity_step
from pipelines.dataset import Dataset
from pipelines.manifest import Commit
from pipelines.settings import Settings, parse, read_yaml
from pipelines.steps import ProgressCallback, Step


class Embed(Settings):
    """CLIP embeddings of every picture, and the heads that read them."""

    clip: Path
    """Weights of the whole CLIP model."""
    architecture: str = ARCHITECTURE
    """open_clip's name of the network."""
    heads: tuple[Path, ...] = ()
    """LAION's aesthetic heads, V1 or V2."""
    probes: tuple[Path, ...] = ()
    """Further heads: NSFW, watermark (filtering.probe)."""
    similarity: tuple[str, ...] = ()
    """Caption groups that are compared with the pictures: `source`, or caption versions."""
    precision: Precision = "float32"
    resizer: Resizer = "pillow"
    device: str = "cpu"
    threads: int = 1
    """That decode for one model."""
    actors: tuple[int, int] | None = None
    """Fewest and most Ray actors with a model each; None: the process that runs the command."""
    gpus: float = 0.0
    """Of each actor."""

    @cached_property
    def model(self) -> Clip:
        """The network, not loaded."""
        return Clip(self.clip, self.architecture, self.precision, self.resizer)


class Columns(Settings):
    """Column groups that are made where they do not stand yet."""

    header: bool = False
    """Format, width and height from the pictures' own bytes."""
    clarity: bool = False
    """Sharpness and colourfulness."""
    hash: bool = False
    """pHash and md5, which duplicates, decontamination and md5 lists need."""
    languages: tuple[str, ...] = ()
    """Caption groups whose language is told: `source`, or caption versions."""
    shipped: tuple[Shipped, ...] = ()
    """Scores that sources ship."""
    embed: Embed | None = None


class FilterRecipe(Settings):
    """Everything that filtering some datasets into one does."""

    columns: Columns = Columns()
    duplicates: Duplicates | None = None
    """Near duplicates over all datasets; the selection then keeps the best of each group."""
    selection: Selection = Selection()

    def filled(self, datasets: Sequence[Dataset]) -> Selection:
        """The selection, with the group of the duplicates that are marked."""
        if self.duplicates is None:
            return self.selection
        prefer = self.selection.prefer or self.duplicates.prefer
        group = duplicates_group(datasets, self.compared(datasets))
        return self.selection.model_copy(update={"duplicates": group, "prefer": prefer})

    def compared(self, datasets: Sequence[Dataset]) -> Duplicates:
        """What counts as a duplicate, with the embeddings' whole name: `clip` stands for those of `columns.embed`."""
        assert self.duplicates is not None
        name, embed = self.duplicates.embeddings, self.columns.embed
        if name is None:
            return self.duplicates
        whole = embed.model.group if embed and name == CLIP else full_name(datasets, name)
        return self.duplicates.model_copy(update={"embeddings": whole})


def load_filter_recipe(path: Path) -> FilterRecipe:
    """The recipe in a YAML file. Raises ConfigurationError, naming the wrong key and the nearest known one."""
    return parse(FilterRecipe, read_yaml(path), str(path))


def make_columns(
    recipe: FilterRecipe, datasets: Sequence[Dataset], on_progress: ProgressCallback | None = None
) -> list[Commit]:
    """Write every column group that the recipe asks for and that does not stand yet.

    Raises ConfigurationError, before any work, where one stands that was made otherwise.
    """
    columns = _columns(recipe.columns)
    for dataset in datasets:
        for column in columns:
            if dataset.entries(column.group) and column.wanted(dataset):
                check_free(dataset, column.group, column.step(dataset))
    commits = [
        column.write(dataset, on_progress) for dataset in datasets for column in columns if column.wanted(dataset)
    ]
    if recipe.duplicates is not None:
        commits += mark_duplicates(datasets, recipe.compared(datasets), on_progress)
    return commits


def missing_groups(recipe: FilterRecipe, datasets: Sequence[Dataset]) -> dict[str, list[str]]:
    """Column groups that the recipe would make first, by dataset."""
    found = {}
    for dataset in datasets:
        columns = _columns(recipe.columns)
        lacking = [one.group for one in columns if one.wanted(dataset) and not dataset.entries(one.group)]
        if lacking:
            found[dataset.name] = list(dict.fromkeys(lacking))
    if not found and recipe.duplicates is not None:  # whose name follows from the other columns
        group = duplicates_group(datasets, recipe.compared(datasets))
        found = {dataset.name: [group] for dataset in datasets if not dataset.entries(group)}
    return found


def _no(dataset: Dataset) -> bool:
    return False


@dataclass(frozen=True)
class _Column:
    """One column group that a recipe makes."""

    group: str
    step: Callable[[Dataset], Step]
    write: Callable[[Dataset, ProgressCallback | None], Commit]
    stands: Callable[[Dataset], bool] = _no
    """Whether the group that a dataset has is as good as what `write` would make, though another step made it."""
    sources: tuple[str, ...] = ()
    """Sources without which a dataset does not get it; empty: every dataset does."""

    def wanted(self, dataset: Dataset) -> bool:
        """Whether a dataset is to have it from `write`."""
        return not self.stands(dataset) and (not self.sources or bool(sources_of(dataset) & set(self.sources)))


def _columns(columns: Columns) -> list[_Column]:
    embed = columns.embed
    clip = embed.model if embed else None
    made: list[_Column] = []
    if columns.header:
        made.append(_Column(HEADER, header_step, write_headers))
    if columns.clarity:
        made.append(_Column(CLARITY, clarity_step, score_clarity))
    if columns.hash:
        made.append(_Column(HASH, hash_step, write_hashes))
    for captions in columns.languages:
        step, write = partial(language_step, captions=captions), _told(write_languages, captions=captions)
        made.append(_Column(language_group(captions), step, write))
    for shipped in columns.shipped:
        made.append(
            _Column(
                shipped.group_for(clip),
                partial(shipped_step, settings=shipped, clip=clip),
                _told(write_shipped, settings=shipped, clip=clip),
                partial(has_embeddings_of, clip=clip) if shipped.embeds and clip else _no,
                shipped.sources,
            )
        )
    return made + (_embedded(embed, embed.model) if embed else [])


def _embedded(settings: Embed, clip: Clip) -> list[_Column]:
    """The embeddings, unless verified ones stand, and what reads them."""
    pool = Pool(settings.device, settings.threads, settings.actors, settings.gpus)
    made = [
        _Column(
            clip.group,
            partial(embed_step, clip=clip),
            _told(embed_images, clip=clip, pool=pool),
            partial(has_embeddings_of, clip=clip),
        )
    ]
    for head in map(load_head, settings.heads):
        step = partial(aesthetic_step, head=head, embeddings=clip.group)
        made.append(_Column(head.group(clip.group), step, _told(score_aesthetics, head=head, embeddings=clip.group)))
    for probe in map(load_probe, settings.probes):
        step = partial(probe_step, probe=probe, embeddings=clip.group)
        made.append(_Column(probe.group(clip.group), step, _told(score_probe, probe=probe, embeddings=clip.group)))
    for captions in settings.similarity:
        step = partial(similarity_step, clip=clip, captions=captions)
        write = _told(score_similarity, clip=clip, captions=captions, device=settings.device)
        made.append(_Column(similarity_group(captions, clip.group), step, write))
    return made


def _told(write: Callable[..., Commit], **settings: Any) -> Callable[[Dataset, ProgressCallback | None], Commit]:
    return lambda dataset, show: write(dataset, on_progress=show, **settings)
