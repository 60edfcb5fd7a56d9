"""Sizes and constants of a Harmon model, and the two published sizes.

Defaults are the paper's; a field without a default differs between the published sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from pipelines.errors import ConfigurationError

TRAIN_STEPS = 1000  # of the diffusion chain: MAR, section 3.2
UnderstandingEncoder = Literal["mar", "siglip", "vae", "vqgan"]
RESPACING = r"^(\d+(,\d+)*|ddim\d+)$"  # what harmon.model.diffusion.kept_timesteps reads


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Kind = TypeVar("_Kind", bound=_Config)


class QwenConfig(_Config):
    """The language model: Qwen2.5's decoder, its fields named as in its config.json."""

    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    vocab_size: int = Field(default=151936, gt=0)
    tie_word_embeddings: bool = True
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768

    @model_validator(mode="after")
    def _heads_divide(self) -> QwenConfig:
        _divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        _divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads)
        return self

    @classmethod
    def from_folder(cls, folder: str | Path) -> QwenConfig:
        """Sizes of a Hugging Face Qwen2 folder, from its config.json (of Transformers 4 or 5)."""
        path = Path(folder) / "config.json"
        values = _read_mapping(path)
        rope = values.get("rope_parameters") or {}
        values.setdefault("rope_theta", rope.get("rope_theta", cls.model_fields["rope_theta"].default))
        return _validated(cls, {key: values[key] for key in cls.model_fields if key in values}, path)


class MarConfig(_Config):
    """The masked autoregressive encoder and decoder (MAR, arXiv 2406.11838; Harmon's release)."""

    encoder_width: int = Field(gt=0)
    encoder_depth: int = Field(gt=0)
    encoder_heads: int = Field(gt=0)
    decoder_width: int = Field(gt=0)
    decoder_depth: int = Field(gt=0)
    decoder_heads: int = Field(gt=0)
    mlp_ratio: float = 4.0
    native_grid: int = Field(default=16, gt=0)
    """Side of the square grid the positional tables are learned at: 256 px / stride 16."""
    latent_channels: int = Field(default=16, gt=0)
    patch_size: int = Field(default=1, gt=0)
    """Latent positions on a side that make one token."""
    buffer_size: int = Field(default=64, ge=0)
    class_count: int = Field(default=1000, ge=0)
    """Rows of the class table: carried for the released checkpoints, never read."""
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Drop-out after the attention projection and in the MLPs."""
    mask_ratio_min: float = Field(default=0.7, gt=0, le=1)
    """Smallest share of positions that MAR's training masks: carried for the released configurations, never
    read. What a stage masks is its own `mask_ratio` (harmon/stages/*.yaml).
    """

    @model_validator(mode="after")
    def _heads_divide(self) -> MarConfig:
        _divides("encoder_heads", self.encoder_heads, "encoder_width", self.encoder_width)
        _divides("decoder_heads", self.decoder_heads, "decoder_width", self.decoder_width)
        return self

    @property
    def token_channels(self) -> int:
        """Values of one token: latent channels times the positions of a patch."""
        return self.latent_channels * self.patch_size**2


class HeadConfig(_Config):
    """The diffusion MLP that turns a decoder output into a token (MAR, section 3)."""

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    batch_mul: int = Field(default=4, gt=0)
    """Timesteps drawn per masked position and training step."""
    sampling_steps: str = Field(default="100", pattern=RESPACING)
    """Diffusion steps in generation: a count, counts per equal section of the 1,000 ("10,5,5"), or "ddim50"."""


class HarmonConfig(_Config):
    """A whole model; `HarmonConfig.preset` has the published sizes."""

    llm: QwenConfig
    mar: MarConfig
    head: HeadConfig
    latent_stride: int = Field(default=16, gt=0)
    """Pixels on a side of one latent position."""
    grad_scale: float | None = 0.1
    """Factor on understanding's gradient into the MAR encoder and `proj_in`; None for no factor."""
    understanding_encoder: UnderstandingEncoder = "mar"
    """What sees the pictures that are asked about (paper, Table 6 and Figure 6): the MAR encoder, shared with drawing;
    or a frozen encoder, behind a connector of its own (`proj_understanding`). "vae" reads the latents that MAR reads.
    """
    understanding_channels: int | None = Field(default=None, gt=0)
    """Values a position of a siglip's or vqgan's map; None for the others."""
    understanding_grid: int | None = Field(default=None, gt=0)
    """Side of the map of an encoder that resizes every picture to its own size (siglip); None: a latent's."""

    @model_validator(mode="after")
    def _understanding_agrees(self) -> HarmonConfig:
        maps = self.understanding_encoder in ("siglip", "vqgan")
        if maps != (self.understanding_channels is not None):
            raise ValueError(
                f"understanding_encoder {self.understanding_encoder} goes with"
                f"{'' if maps else 'out'} understanding_channels"
            )
        if self.understanding_grid is not None and self.understanding_encoder != "siglip":
            raise ValueError("understanding_grid goes with understanding_encoder siglip alone")
        return self

    @model_serializer(mode="wrap")
    def _without_the_papers(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as in the paper is left out of the fields above, so that keys made before there were any stay."""
        values: dict[str, Any] = write(self)
        kept = {name: field.default for name, field in type(self).model_fields.items() if name.startswith("underst")}
        return {name: value for name, value in values.items() if name not in kept or value != kept[name]}

    @classmethod
    def preset(cls, name: str) -> HarmonConfig:
        """`harmon-0.5b` or `harmon-1.5b` (paper, section 3; the released configurations)."""
        if name not in PRESETS:
            raise ConfigurationError(f"there is no model preset {name!r}; the presets are {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_file(cls, path: str | Path) -> HarmonConfig:
        """Read a YAML or JSON file; ConfigurationError names the field that is wrong."""
        return _validated(cls, _read_mapping(Path(path)), path)

    def tokens(self, latent_height: int, latent_width: int) -> int:
        """Image positions of a latent grid."""
        return (latent_height // self.mar.patch_size) * (latent_width // self.mar.patch_size)

    @property
    def shares_encoder(self) -> bool:
        """Whether drawing and understanding share the MAR encoder, as in the paper."""
        return self.understanding_encoder == "mar"

    def slots(self, latent_height: int, latent_width: int) -> int:
        """Image slots of a question about a picture of this latent grid: its positions and MAR's buffers, or the
        positions of another encoder's map.
        """
        if self.shares_encoder:
            return self.tokens(latent_height, latent_width) + self.mar.buffer_size
        if self.understanding_encoder == "vae":
            return self.tokens(latent_height, latent_width)
        side = self.understanding_grid
        return latent_height * latent_width if side is None else side * side


def changed_defaults(config: BaseModel, place: str = "model") -> list[tuple[str, Any, Any]]:
    """(key, the paper's value, this value) of every field that has a paper's value and departs from it.

    Sizes without a default differ between the published models and are not listed.
    """
    changed: list[tuple[str, Any, Any]] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            changed += changed_defaults(value, f"{place}.{name}")
        elif not field.is_required() and value != field.default:
            changed.append((f"{place}.{name}", field.default, value))
    return changed


def _divides(part_name: str, part: int, whole_name: str, whole: int) -> None:
    if whole % part:
        raise ValueError(f"{part_name} {part} must divide {whole_name} {whole}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the model configuration {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"the model configuration {path} is not a mapping of names to values")
    return values


def _validated(kind: type[_Kind], values: dict[str, Any], path: str | Path) -> _Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ConfigurationError(f"the model configuration {path} is wrong at {place}: {first['msg']}") from error


def _published(
    llm: tuple[int, int, int, int, int], width: int, depth: int, heads: int, head_width: int, head_depth: int
) -> HarmonConfig:
    hidden, layers, attention_heads, kv_heads, mlp = llm
    return HarmonConfig(
        llm=QwenConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=attention_heads,
            num_key_value_heads=kv_heads,
            intermediate_size=mlp,
        ),
        mar=MarConfig(
            encoder_width=width,
            encoder_depth=depth,
            encoder_heads=heads,
            decoder_width=width,
            decoder_depth=depth,
            decoder_heads=heads,
        ),
        head=HeadConfig(width=head_width, depth=head_depth),
    )


PRESETS = {
    "harmon-0.5b": _published((896, 24, 14, 2, 4864), 768, 12, 12, 1024, 6),  # Qwen2.5-0.5B, MAR-B
    "harmon-1.5b": _published((1536, 28, 12, 2, 8960), 1280, 20, 16, 1536, 12),  # Qwen2.5-1.5B, MAR-H
}
