"""The steps of a recipe as amounts of work: what each does, how much of it, what it leaves, and what it waits for.

The names are those of `flows.work.work_of`, in its order; a gate takes no time and is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flows.pictures import latents_needed, understanding_file
from flows.plan.sizes import Size, set_size, source_size
from flows.recipe import Recipe
from flows.train import stage_of
from flows.training_work import model_of
from harmon import flops
from harmon.evaluation.run import EvaluationConfig
from harmon.model.config import HarmonConfig
from harmon.model.mar import Grid
from harmon.training.forecast import step_flops
from harmon.training.memory import Lengths
from harmon.training.parameters import parameter_counts

KEPT_BY_THRESHOLD = 0.2
"""Share of its sources that a set with thresholds keeps: the paper's 10M of 50M (section 3.4)."""
CAPTION_BYTES, EMBEDDING_BYTES, CLARITY_BYTES = 100, 1_600, 40  # a row; captions and clarity as in the demo
QUESTIONS = 3.5  # of a scene that is asked about, on average
STATE_BYTES = 12  # of a parameter in a checkpoint: the weight and AdamW's two moments, float32
ON_GPUS = frozenset({"rewrite", "embed", "latents", "train", "curve", "evaluate"})


@dataclass(frozen=True)
class Draft:
    """One step before rates and prices."""

    name: str
    unit: str
    amount: float
    """Of its unit: what its time is proportional to."""
    samples: int
    """Rows, pictures or training samples that go through it."""
    bytes: float = 0.0
    """That it leaves behind."""
    after: tuple[str, ...] = ()
    basis: str = ""
    """Where the amount comes from."""
    shard_rows: int = 0
    """Samples of one shard; 0: the step is not cut into shards."""

    @property
    def kind(self) -> str:
        """download, train, …"""
        return self.name.partition(":")[0]


@dataclass
class _Drafting:
    """The recipe, the sizes known so far, and the steps."""

    recipe: Recipe
    sizes: dict[str, Size] = field(default_factory=dict)
    steps: list[Draft] = field(default_factory=list)

    def of(self, kinds: Sequence[str], subject: str) -> tuple[str, ...]:
        """Steps of these kinds on `subject` that are there, `download:scenes` and `rewrite:scenes@v2` among them."""
        named = [(one.kind, one.name.partition(":")[2].partition("@")[0], one.name) for one in self.steps]
        return tuple(name for kind, about, name in named if kind in kinds and about == subject)


def drafts(
    recipe: Recipe, stated: Mapping[str, int] | None = None, kept: Mapping[str, float] | None = None
) -> list[Draft]:
    """Every step of `recipe`. `stated`: rows by source; `kept`: share of its sources that a set keeps, by set."""
    now = _Drafting(recipe)
    if recipe.web:
        pictures = recipe.web.classes + recipe.web.scenes
        now.steps.append(Draft("publish:web", "pictures", pictures, pictures, 3_600.0 * pictures, basis="web"))
    for name in recipe.sources:
        now.sizes[name] = source_size(recipe, name, stated)
    now.steps.extend(_columns(now))
    now.steps.extend(_sets(now, kept or {}))
    for steps in (_latents, _training, _endings):
        now.steps.extend(steps(now))
    return now.steps


def _columns(now: _Drafting) -> Iterator[Draft]:
    recipe = now.recipe
    web = ("publish:web",) if recipe.web else ()
    for name, size in now.sizes.items():
        rows = recipe.sources[name].rows_per_shard
        yield Draft(f"download:{name}", "rows", size.listed, size.listed, size.bytes, web, size.basis, rows)
    for name, published in recipe.captions.items():
        size = now.sizes[name]
        for one in published:
            left = float(CAPTION_BYTES * size.rows)
            yield _column(recipe, f"captions:{name}@{one}", name, "rows", size.rows, left, size)
    for name in recipe.recaption.datasets:
        size = now.sizes[name]
        for prompt in recipe.recaption.prompts:
            subject = name if prompt == recipe.recaption.prompt else f"{name}@{prompt}"
            left = float(CAPTION_BYTES * size.rows)
            yield _column(recipe, f"rewrite:{subject}", name, "requests", size.dense, left, size)
    for name, size in now.sizes.items():
        yield _column(recipe, f"clarity:{name}", name, "pictures", size.pictures, CLARITY_BYTES * size.rows, size)
    for kind, weight in (("embed", EMBEDDING_BYTES), ("aesthetic", CLARITY_BYTES)) if recipe.aesthetic else ():
        for name, size in now.sizes.items():
            after = (f"embed:{name}",) if kind == "aesthetic" else ()
            left = float(weight * size.pictures)
            yield _column(recipe, f"{kind}:{name}", name, "pictures", size.pictures, left, size, after)


def _column(
    recipe: Recipe, step: str, name: str, unit: str, amount: int, left: float, size: Size, after: tuple[str, ...] = ()
) -> Draft:
    rows = recipe.sources[name].rows_per_shard
    return Draft(step, unit, amount, amount, left, after or (f"download:{name}",), size.basis, rows)


def _sets(now: _Drafting, kept: Mapping[str, float]) -> Iterator[Draft]:
    recipe = now.recipe
    for name, selection in recipe.sets.items():
        sources = recipe.sources_of(name)
        share = kept.get(name, KEPT_BY_THRESHOLD if selection.thresholds else 1.0)
        size = now.sizes[name] = set_size(recipe, name, now.sizes, share)
        rows = sum(now.sizes[one].rows for one in sources)
        kinds = ("download", "captions", "rewrite", "clarity", "embed", "aesthetic")
        after = tuple(step for one in sources for step in now.of(kinds, one))
        basis = f"reads {rows:,} rows; leaves {size.rows:,}: {size.basis}"
        yield Draft(f"select:{name}", "rows", rows, rows, size.bytes, after, basis, selection.rows_per_shard)


def _latents(now: _Drafting) -> Iterator[Draft]:
    recipe, model = now.recipe, model_of(now.recipe)
    for name, px, encoder in latents_needed(recipe):
        seen = encoder == understanding_file(recipe) and recipe.training.understanding
        size, positions = now.sizes[name], (px // model.latent_stride) ** 2
        left = 2.0 * model.mar.latent_channels * positions * size.pictures  # fp16
        yield Draft(
            f"latents:{name}@{px}px" + (f"-{seen.encoder}" if seen else ""),
            "megapixels",
            size.pictures * px * px / 1e6,
            size.pictures,
            left,
            (f"select:{name}",),
            f"{size.pictures:,} pictures of {px} px: {size.basis}",
            recipe.sets[name].rows_per_shard,
        )


def _training(now: _Drafting) -> Iterator[Draft]:
    recipe, model = now.recipe, model_of(now.recipe)
    weights = sum(parameter_counts(model).values())
    before: tuple[str, ...] = ()
    for number, settings in enumerate(recipe.training.stages):
        stage = stage_of(recipe, number)
        entries = (*settings.text, *settings.image2text, *settings.text2image)
        reads = tuple(dict.fromkeys(entry.set for entry in entries))
        after = tuple(step for one in reads for step in now.of(("latents",), one) or now.of(("select",), one))
        spent = step_flops(stage, model) * stage.steps
        checkpoints = min(recipe.training.keep, -(-stage.steps // recipe.training.checkpoint_every))
        name = f"train:{settings.stage}"
        basis = f"{stage.steps:,} train steps of {stage.global_batch:,} samples at {stage.px} px; texts of {_texts()}"
        samples, left = stage.steps * stage.global_batch, float(STATE_BYTES * weights * checkpoints)
        yield Draft(name, "FLOP", spent, samples, left, (*after, *before), basis)
        before = (name,)


def _texts() -> str:
    one = Lengths()
    return f"{one.prompt} (prompt), {one.question + one.labelled} (chat) and {one.text} (text) tokens, assumed"


def _endings(now: _Drafting) -> Iterator[Draft]:
    recipe, model = now.recipe, model_of(now.recipe)
    trained = tuple(step.name for step in now.steps if step.kind == "train")[-1:]
    name, after = recipe.name, trained
    if recipe.curve:
        checkpoints = sum(
            min(recipe.training.keep, -(-stage_of(recipe, number).steps // recipe.training.checkpoint_every))
            for number in range(len(recipe.training.stages))
        )
        spent, drawn = _measuring(recipe, model, recipe.curve)
        basis = f"{checkpoints} checkpoints, {drawn} pictures and questions each"
        yield Draft(f"curve:{name}", "FLOP", checkpoints * spent, checkpoints * drawn, after=trained, basis=basis)
        after = (f"curve:{name}",)
    spent, drawn = _measuring(recipe, model, recipe.evaluation)
    yield Draft(f"evaluate:{name}", "FLOP", spent, drawn, after=trained, basis=f"{drawn} pictures and questions")
    made = {step.name: step for step in now.steps}
    sets = tuple(f"select:{one}" for one in recipe.sets) + tuple(one for one in made if one.startswith("latents:"))
    kept = sum(step.bytes for step in made.values() if step.kind not in ("publish", "train"))
    rows = sum(size.rows for size in now.sizes.values())
    yield Draft("audit:datasets", "bytes", kept, rows, after=sets, basis="every byte of every dataset, read again")
    yield Draft(f"report:{name}", "pages", 1, 1, 1e6, (f"evaluate:{name}", "audit:datasets", *after), "one page")


def _measuring(recipe: Recipe, model: HarmonConfig, how: EvaluationConfig) -> tuple[float, int]:
    """FLOPs of the pictures drawn and the questions answered, and how many there are."""
    px = stage_of(recipe, len(recipe.training.stages) - 1).px
    side = px // model.latent_stride // model.mar.patch_size
    drawn = how.held_out + how.seen + how.two
    picture = (
        flops.total(flops.generated_image(model, Grid(side, side), Lengths().prompt, how.sampling)) if drawn else 0
    )
    answer = flops.total(flops.image_to_text(model, Grid(side, side), Lengths().question, 1)) / 3  # forward alone
    asked = round(QUESTIONS * how.asked)
    return drawn * picture + asked * answer, drawn + asked
