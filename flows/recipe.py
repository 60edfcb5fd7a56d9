"""What a recipe file may say: the one YAML file that is one run, typed, with the path of every folder it implies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from filtering.embedding import ARCHITECTURE
from filtering.selection import Selection
from flows.gate import Gate
from flows.report.inputs import Goals, StandIn
from flows.watching import WatchSettings
from harmon.evaluation.run import EvaluationConfig
from harmon.training.decoding import Decoding
from harmon.training.execution import Execution, GuardConfig
from harmon.training.launch import Launch
from harmon.training.stage import Departure
from pipelines.download import DownloadSettings
from pipelines.errors import ConfigurationError
from pipelines.fetch import FetchSettings
from pipelines.location import Location, location
from pipelines.settings import Settings, laid_over, nearest, parse, read_yaml, with_override
from pipelines.terms import Acceptance
from pipelines.web import WebSettings
from recaption.engines import EngineSettings

CHECKOUT = Path(__file__).resolve().parents[1]


class RecaptionSettings(EngineSettings):
    """Which captions are rewritten by which model and prompt; how the engine is reached is inherited."""

    datasets: tuple[str, ...]
    """Sources whose dense captions are rewritten."""
    prompt: str
    """Version of the prompt, as recaption/prompts names it."""
    also: tuple[str, ...] = ()
    """Further versions, each in a caption group of its own, for mixtures that name them."""
    model: str
    """Folder of the language model."""
    model_name: str
    """Short name that the caption group carries."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every version asked, each once."""
        return tuple(dict.fromkeys((self.prompt, *self.also)))


class AestheticSettings(Settings):
    """LAION's aesthetic predictor: a score of every image, in the group `aesthetic.<head>.<embedding>`, for
    a set's thresholds, which may say `aesthetic`."""

    clip: str
    """File with the weights of CLIP ViT-L/14."""
    head: str
    """File with the weights of the predictor, V1 or V2."""
    architecture: str = ARCHITECTURE
    """open_clip's name of the network in `clip`."""


class MixtureEntry(Settings):
    """Rows of one training set that serve a task."""

    set: str
    """Name of the training set, as `sets` names it."""
    rows: str
    """text, image2text or text2image: the rows' own task."""
    text: str
    """caption, conversation, picture (reconstruction), rewrite (the captions of the recipe's prompt), the version of
    one of its prompts, or published captions by catalogue name."""
    sources: tuple[str, ...] | None = None
    """Sources whose rows are taken; all when left out."""
    weight: int = 1
    """Share of the task's samples relative to its other entries."""
    epochs: float | None = None
    """Passes through its rows over the whole stage, in place of a weight."""


class StageSettings(Settings):
    """One training stage: its file in harmon/stages and what differs from it here."""

    stage: str
    """Name of the file."""
    departures: Mapping[str, Any] = {}
    """Keys of the stage that are set otherwise than in the paper; the report lists them."""
    text: tuple[MixtureEntry, ...] = ()
    image2text: tuple[MixtureEntry, ...] = ()
    text2image: tuple[MixtureEntry, ...] = ()
    gate: Gate | None = None
    """What lets the next step start once this stage is done; None: that it is done."""


class UnderstandingSettings(Settings):
    """A frozen encoder that sees in MAR's place (paper, Table 6 and Figure 6)."""

    encoder: Literal["siglip", "vae", "vqgan"]
    """vae: the latents that MAR reads, by `autoencoder`."""
    weights: str | None = None
    """File that `python -m harmon.seeing` wrote; of a vae, none."""
    channels: int | None = None
    """Values a position of its map; of a vae, none."""
    grid: int | None = None
    """Side of a siglip's map."""

    @model_validator(mode="after")
    def _weights_agree(self) -> Self:
        if (self.encoder == "vae") != (self.weights is None):
            raise ValueError("weights: a siglip or vqgan needs a file, and a vae sees with `autoencoder`")
        return self


class Variation(Settings):
    """What an ablation changes in the stages, laid over them as they stand."""

    leave_out: tuple[str, ...] = ()
    """Stages that are not trained (paper, Table 7)."""
    departures: Mapping[str, Mapping[str, Any]] = {}
    """Departures of a stage, by its name, over those that it has."""
    seed: int | None = None
    """Seed of every stage."""
    gates: bool = True
    """Whether the stages keep their gates: one on a task that an ablation does not train never opens."""

    def applied(self, stages: Sequence[Any]) -> list[Any]:
        """The stages of a recipe file, varied. Raises ValueError where it names a stage that is not there."""
        if not all(isinstance(stage, Mapping) and "stage" in stage for stage in stages):
            return list(stages)  # what is wrong with them is told when they are read
        names = [str(stage["stage"]) for stage in stages]
        for name in (*self.leave_out, *self.departures):
            if name not in names:
                raise ValueError(f"variation: there is no stage '{name}'; {nearest(name, names)}")
        seed = {} if self.seed is None else {"seed": self.seed}
        gate = {} if self.gates else {"gate": None}
        return [
            laid_over(stage, {"departures": {**self.departures.get(stage["stage"], {}), **seed}, **gate})
            for stage in stages
            if stage["stage"] not in self.leave_out
        ]


class TrainingSettings(Settings):
    """The model, its first weights, and the stages in order."""

    model: str
    """harmon-0.5b, harmon-1.5b, or a file with the model's sizes."""
    understanding: UnderstandingSettings | None = None
    """What sees pictures that are asked about; None, as in the paper: MAR's encoder."""
    autoencoder: str
    """File with the frozen autoencoder's weights."""
    latents: Literal["stored", "online"] | Decoding = "stored"
    """Stored: made of every picture before the stages, of one square each. Online: pictures are decoded and encoded
    while training, as the settings say or as their defaults do."""
    weights: tuple[str, ...]
    """Safetensors files that hold the first weights."""
    tokenizer: str
    """Folder of the tokenizer."""
    launch: Launch = Launch()
    """Ray Train workers and threads; without drop-out the result does not depend on them beyond rounding."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What each worker trains on."""
    log_every: int = 10
    """Train steps from one line of metrics to the next."""
    checkpoint_every: int = 500
    """Train steps from one checkpoint to the next."""
    keep: int = 2
    """Newest checkpoints of each stage that stay."""
    watch: WatchSettings = WatchSettings()
    """What follows each stage while it trains, beside metrics.jsonl."""
    save_behind: bool = False
    """Write checkpoints while training goes on."""
    store: str | None = None
    """Where checkpoints go, such as s3://bucket/prefix, below the recipe's name and its run folder's; None: beside the
    metrics."""
    autocast: Literal["bfloat16"] | None = None
    """What matrix products run in; None: float32."""
    average: float | None = None
    """Decay of an average of the weights; None, as in the paper: none."""
    guard: GuardConfig = GuardConfig()
    """Which train steps are skipped."""
    execution: Execution = Execution()
    """Copies or shards of the model, micro-batches, recomputation and compilation."""
    stages: tuple[StageSettings, ...]

    @model_validator(mode="before")
    @classmethod
    def _varied(cls, values: Any) -> Any:
        """The stages that a recipe's `variation` makes of those it extends; it is no field, since they say it all."""
        if not isinstance(values, Mapping) or "variation" not in values or not isinstance(values.get("stages"), list):
            return values
        rest = {name: value for name, value in values.items() if name != "variation"}
        variation = parse(Variation, values["variation"], "training.variation")
        return rest | {"stages": variation.applied(values["stages"])}


class FilesSettings(Settings):
    """Where the published files of a source are read from."""

    folder: str | None = None
    """A folder laid out as the hub's; None: they are fetched from the hub."""
    only: tuple[str, ...] = ()
    """Patterns of the files that hold the rows to read; empty: all."""
    entry: tuple[str, ...] = ()
    """path.to.key=value that replace what the catalogue entry says."""


class Recipe(Settings):
    """One run: from lists of links to a report."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    data: str
    """Folder of the datasets, or s3://bucket/prefix."""
    runs: str
    """Folder of logs, checkpoints and reports."""
    web: WebSettings | None = None
    """The stand-in for the internet that the run serves on loopback while it downloads; None: the internet itself."""
    sources: Mapping[str, DownloadSettings]
    """What is downloaded, by catalogue name."""
    files: Mapping[str, FilesSettings] = {}
    """Where the sources that are published elsewhere come from; one that is not named is fetched from the hub."""
    captions: Mapping[str, tuple[str, ...]] = {}
    """Published captions that are joined to a source's rows, by catalogue name; a mixture names them as its text."""
    terms: Mapping[str, Acceptance] = {}
    """Who accepted the terms of which source, and when; a source that needs it is refused without."""
    fetch: FetchSettings = FetchSettings()
    """How links are fetched."""
    recaption: RecaptionSettings
    reuse: tuple[str, ...] = ()
    """Datasets whose captions answer identical work: folders, or s3://bucket/prefix."""
    aesthetic: AestheticSettings | None = None
    """The aesthetic predictor, where its weights are present; None: images have no aesthetic score."""
    sets: Mapping[str, Selection]
    """Training sets, by name: which rows are kept and how they are sharded."""
    set_sources: Mapping[str, tuple[str, ...]] = {}
    """Which sources go into a training set; all into one that is not named."""
    training: TrainingSettings
    evaluation: EvaluationConfig = EvaluationConfig()
    """Prompts and questions that the trained model is measured with."""
    curve: EvaluationConfig | None = None
    """What every kept checkpoint is measured with, for a curve over training; None: no curve."""

    goals: Goals = Goals()
    """What the report holds the scores against."""
    other_departures: tuple[Departure, ...] = ()
    """What is done otherwise than in the paper and is no setting of a stage, the model or sampling."""
    stand_ins: tuple[StandIn, ...] = ()
    """Parts of this run that take the place of the paper's."""

    @model_validator(mode="after")
    def _sets_have_sources(self) -> Self:
        for name in self.captions:
            if name not in self.sources:
                raise ValueError(f"captions: sources has no '{name}'; {nearest(name, list(self.sources))}")
        for name, sources in self.set_sources.items():
            for one, known, what in ((name, self.sets, "sets"), *((one, self.sources, "sources") for one in sources)):
                if one not in known:
                    raise ValueError(f"set_sources.{name}: {what} has no '{one}'; {nearest(one, list(known))}")
        return self

    @model_validator(mode="after")
    def _averages_are_kept(self) -> Self:
        for name, measured in (("evaluation", self.evaluation), ("curve", self.curve)):
            if measured is not None and measured.average and self.training.average is None:
                raise ValueError(f"{name}.average measures averaged weights, which only training.average keeps: set it")
        return self

    @model_validator(mode="after")
    def _gates_ask_what_is_scored(self) -> Self:
        suite = self.training.watch.scenes
        for settings in self.training.stages:
            score = settings.gate.scores if settings.gate else None
            if score is None:
                continue
            if suite is None:
                raise ValueError(
                    f"training.stages: the gate behind {settings.stage} asks {score}, which only "
                    "training.watch.samples.scenes measures: set it"
                )
            if score not in suite.metrics():
                raise ValueError(
                    f"training.stages: the gate behind {settings.stage} asks {score}, which the suite of "
                    f"training.watch.samples.scenes does not have; {nearest(score, suite.metrics())}"
                )
        return self

    def sources_of(self, set_name: str) -> tuple[str, ...]:
        """The sources that go into a training set, in the recipe's order."""
        chosen = self.set_sources.get(set_name)
        return tuple(name for name in self.sources if chosen is None or name in chosen)

    def dataset(self, name: str) -> Location:
        """Where a source's dataset or a training set lies."""
        return location(self.data).absolute() / name

    @property
    def web_folder(self) -> Path:
        """Folder of the stand-in internet: beside the datasets, or in the run's folder where those are in S3."""
        data = location(self.data).absolute()
        return data / "web" if isinstance(data, Path) else self.run_folder / "web"

    @property
    def run_folder(self) -> Path:
        """Folder of everything a run writes that is no dataset."""
        return _anchored(self.runs)


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with each `path.to.key=value` of `settings` laid over it.

    Raises:
        ConfigurationError: naming the wrong key and the nearest known one.
    """
    data = recipe_values(path)
    for setting in settings:
        with_override(data, setting)
    return parse(Recipe, data, str(path))


def recipe_values(path: Path, deeper: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `path`, laid over that of the recipe beside it that its key `extends` names, if it has one."""
    path = path.resolve()
    if path in deeper:
        raise ConfigurationError(f"{path} extends itself; remove one `extends`.")
    data = read_yaml(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigurationError(f"{path}: extends: name one recipe file beside this one.")
    return laid_over(recipe_values(path.parent / base, (*deeper, path)), data)


def part(path: str) -> Path:
    """A file that a recipe names: relative names are meant from the checkout, so a run may start anywhere."""
    return CHECKOUT / path


def _anchored(folder: str) -> Path:
    return Path(folder).absolute()
