"""What one training stage is: paper Table 1 and the constants beside it, typed; and what a run departs from.

The numbers stand once, in harmon/stages/*.yaml. A recipe names a stage and may override any of its keys;
whatever then differs from the file is a departure from the paper, which the report prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from pipelines.settings import Settings, laid_over, parse, read_yaml

Task = Literal["text", "image2text", "text2image"]
Part = Literal["encoder", "decoder", "llm"]
TASKS: tuple[Task, ...] = get_args(Task)
PARTS: tuple[Part, ...] = get_args(Part)
STAGES_FOLDER = Path(__file__).resolve().parent.parent / "stages"


class PerTask(Settings):
    """One number a task, in the order of paper Table 1's data ratio."""

    text: float = Field(ge=0)
    image2text: float = Field(ge=0)
    text2image: float = Field(ge=0)

    def of(self, task: Task) -> float:
        """The number of `task`."""
        return float(getattr(self, task))


class TaskRatio(PerTask):
    """Whole-number ratio of blocks a task."""

    text: int = Field(ge=0)
    image2text: int = Field(ge=0)
    text2image: int = Field(ge=0)


class PartRates(Settings):
    """Peak learning rate of each part of the model; a part without one is frozen."""

    encoder: float | None = Field(None, gt=0)
    decoder: float | None = Field(None, gt=0)
    llm: float | None = Field(None, gt=0)

    def of(self, part: Part) -> float | None:
        """The rate of `part`, None when it is frozen."""
        rate: float | None = getattr(self, part)
        return rate


class MaskRatio(Settings):
    """Truncated normal from which a text-to-image block's share of masked positions is drawn."""

    mean: float
    deviation: float = Field(gt=0)
    low: float = Field(gt=0, le=1)
    high: float = Field(gt=0, le=1)


class StageConfig(Settings):
    """One stage. Every field has its value, with its source, in harmon/stages/*.yaml."""

    stage: str = Field(pattern=r"^[a-z0-9-]+$")
    """Name; part of the key of every draw."""
    learning_rate: PartRates
    """Peak learning rate by part."""
    px: int = Field(gt=0)
    """Side of the square training images in pixels."""
    global_batch: int = Field(gt=0)
    """Samples of one train step over all tasks and workers."""
    block_rows: int = Field(gt=0)
    """Rows of one block; divides global_batch."""
    ratio: TaskRatio
    """Blocks a task, by cumulative rounding."""
    steps: int = Field(gt=0)
    """Train steps."""
    betas: tuple[float, float]
    """AdamW's decay rates."""
    weight_decay: float = Field(ge=0)
    """AdamW's decoupled weight decay, on matrices outside the diffusion head."""
    clip_norm: float = Field(gt=0)
    """Largest norm of the gradient over all trained parts."""
    warmup_share: float = Field(ge=0, lt=1)
    """Share of the steps in which the rate rises linearly; then it falls as a cosine to 0."""
    warmup_start: float = Field(gt=0, le=1)
    """Factor of the rate at step 0."""
    caption_drop: float = Field(ge=0, le=1)
    """Share of text-to-image prompts without their caption."""
    mask_ratio: MaskRatio
    """Distribution of a block's mask ratio."""
    full_mask_share: float = Field(ge=0, le=1)
    """Share of text-to-image blocks whose mask ratio is forced to 1."""
    loss_weight: PerTask
    """Factor of each task's loss beside its share of the blocks."""
    prompt_tokens: int = Field(gt=16)
    """Longest text-to-image prompt in tokens."""
    chat_tokens: int = Field(gt=32)
    """Longest chat in text tokens; image slots are not counted."""
    turns: int | None = Field(gt=0)
    """Question-answer pairs of one chat, taken from a drawn place in the conversation; None: all of them."""
    window_shards: int = Field(gt=0)
    """Shards whose rows are shuffled together."""
    seed: int = Field(ge=0)
    """Seed of every draw."""

    @model_validator(mode="after")
    def _blocks_fill_the_batch(self) -> Self:
        if self.global_batch % self.block_rows:
            raise ValueError(f"block_rows {self.block_rows} must divide global_batch {self.global_batch}")
        if not any(self.ratio.of(task) for task in TASKS):
            raise ValueError("ratio must give at least one task a share")
        if all(self.learning_rate.of(part) is None for part in PARTS):
            raise ValueError("learning_rate must name at least one part")
        return self

    @model_validator(mode="after")
    def _every_task_has_a_learner(self) -> Self:
        """A loss that reaches no trained weight has no gradient: the first train step would fail on it."""
        learners: dict[Task, tuple[Part, ...]] = {"text": ("llm",), "image2text": ("encoder", "llm")}
        for task, parts in learners.items():
            if self.ratio.of(task) and all(self.learning_rate.of(part) is None for part in parts):
                raise ValueError(
                    f"ratio gives {task} a share, and what learns of it is frozen: give {' or '.join(parts)} a "
                    f"learning_rate, or {task} no share"
                )
        return self

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one train step."""
        return self.global_batch // self.block_rows


@dataclass(frozen=True)
class Departure:
    """A setting whose value here is not the paper's."""

    key: str
    paper: Any
    here: Any


def load_stage(name: str, overrides: Mapping[str, Any] | None = None) -> StageConfig:
    """The stage in harmon/stages/`name`.yaml with `overrides` (nested as the file is) laid over it.

    Raises:
        ConfigurationError: no such stage, or a key or value that a stage does not take.
    """
    values = read_yaml(STAGES_FOLDER / f"{name}.yaml")
    return parse(StageConfig, laid_over(values, overrides or {}), f"stage {name}")


def departures(stage: StageConfig, paper_stage: StageConfig) -> list[Departure]:
    """What `stage` sets otherwise than `paper_stage`, by key in the file's order; the name and the seed do
    not count.
    """
    here, paper = _flat(stage.model_dump()), _flat(paper_stage.model_dump())
    return [
        Departure(key, paper[key], here[key])
        for key in here
        if here[key] != paper[key] and key not in ("stage", "seed")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
