"""The file that `harmon filter --recipe` reads: columns to make first, duplicates to mark, rows to keep."""

from collections.abc import Callable, Sequence
from pathlib import Path

from filtering.aesthetic import load_head, score_aesthetics
from filtering.clarity import score_clarity
from filtering.duplicates import Duplicates, duplicates_group, mark_duplicates
from filtering.embedding import ARCHITECTURE, Clip, Pool, Precision, embed_images
from filtering.header import write_headers
from filtering.language import write_languages
from filtering.phash import write_hashes
from filtering.preprocess import Resizer
from filtering.probe import load_probe, score_probe
from filtering.selection import Selection
from filtering.shipped import Shipped, write_shipped
from filtering.similarity import score_similarity
from pipelines.dataset import Dataset
from pipelines.manifest import Commit
from pipelines.settings import Settings, parse, read_yaml
from pipelines.steps import ProgressCallback


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
        return self.selection.model_copy(
            update={"duplicates": duplicates_group(datasets, self.duplicates), "prefer": prefer}
        )


def load_filter_recipe(path: Path) -> FilterRecipe:
    """The recipe in a YAML file. Raises ConfigurationError, naming the wrong key and the nearest known one."""
    return parse(FilterRecipe, read_yaml(path), str(path))


def make_columns(
    recipe: FilterRecipe, datasets: Sequence[Dataset], on_progress: ProgressCallback | None = None
) -> list[Commit]:
    """Write every column group that the recipe asks for and that does not stand yet."""
    commits = [
        commit for dataset in datasets for make in _makers(recipe.columns) for commit in make(dataset, on_progress)
    ]
    if recipe.duplicates is not None:
        commits += mark_duplicates(datasets, recipe.duplicates, on_progress)
    return commits


Maker = Callable[[Dataset, ProgressCallback | None], list[Commit]]


def _makers(columns: Columns) -> list[Maker]:
    makers: list[Maker] = []
    if columns.header:
        makers.append(lambda dataset, show: [write_headers(dataset, show)])
    if columns.clarity:
        makers.append(lambda dataset, show: [score_clarity(dataset, show)])
    if columns.hash:
        makers.append(lambda dataset, show: [write_hashes(dataset, show)])
    for group in columns.languages:
        makers.append(lambda dataset, show, group=group: [write_languages(dataset, group, show)])  # type: ignore[misc]
    for shipped in columns.shipped:
        makers.append(lambda dataset, show, one=shipped: [write_shipped(dataset, one, show)])  # type: ignore[misc]
    if columns.embed is not None:
        makers.append(_embedder(columns.embed))
    return makers


def _embedder(settings: Embed) -> Maker:
    clip = Clip(settings.clip, settings.architecture, settings.precision, settings.resizer)
    pool = Pool(settings.device, settings.threads, settings.actors, settings.gpus)

    def make(dataset: Dataset, show: ProgressCallback | None) -> list[Commit]:
        # embeddings that a source ships under the same name, and that were verified, are used
        made = [] if dataset.entries(clip.group) else [embed_images(dataset, clip, show, pool)]
        made += [score_aesthetics(dataset, load_head(head), clip.group, show) for head in settings.heads]
        made += [score_probe(dataset, load_probe(probe), clip.group, show) for probe in settings.probes]
        return made + [score_similarity(dataset, clip, one, show, settings.device) for one in settings.similarity]

    return make
