"""What every form of checkpoint holds, and the check that it holds just that.

Tensors keep the float type they are stored in. They are views of files on disk (memory-mapped) wherever the
file allows it, so holding a `Contents` costs little memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harmon.convert.autoencoders import Sizes, empty_autoencoder
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.text import ChatText
from pipelines.errors import ConfigurationError, HarmonError

HEAD, EMBEDDING = "llm.lm_head.weight", "llm.model.embed_tokens.weight"


@dataclass(frozen=True)
class Contents:
    """One model with its autoencoder and its tokenizer."""

    config: HarmonConfig
    tensors: Mapping[str, Tensor]
    """The model under the released names; a tied head is left out."""
    autoencoder: Sizes
    autoencoder_tensors: Mapping[str, Tensor]
    """The autoencoder under kl16.ckpt's names, or a patch latent's three."""
    tokenizer: Path | None
    """A file tokenizer.json; None where a form lacks one and nobody named one."""
    px: int
    """Side of the pictures that it draws unless asked otherwise."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """How its pictures are drawn, as harmon.sampling_config.SamplingConfig; empty: as the paper draws them."""
    released_head: bool = False
    """Whether the released file repeats the tied embedding as `llm.lm_head.weight`."""
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of kl16.ckpt that the autoencoder does not use (its training loss), kept for the way back."""
    weights: tuple[Path, ...] = ()
    """The files that the tensors are read from."""
    understanding: Path | None = None
    """File of the frozen encoder that sees in MAR's place; None where MAR's encoder or the autoencoder does."""
    stage: str = ""
    """A run's last trained stage; empty elsewhere."""
    step: int = 0

    def checked(self, where: object) -> Contents:
        """Itself, if the names and shapes are exactly the model's and the tokenizer fits.

        Raises:
            HarmonError: naming the keys that are missing, unexpected, of another shape, or no floats; or the
                model and its autoencoder disagree on the latents' channels or stride.
            ConfigurationError: the tokenizer has more tokens than the model.
        """
        with torch.device("meta"):
            model, autoencoder = Harmon(self.config), empty_autoencoder(self.autoencoder)
        own = {name: value.shape for name, value in model.state_dict().items()}
        if self.config.llm.tie_word_embeddings:
            del own[HEAD]
        _compare(own, self.tensors, f"{where}: the weights do not fit the model")
        latent = {name: value.shape for name, value in autoencoder.state_dict().items()}
        _compare(latent, self.autoencoder_tensors, f"{where}: the autoencoder's weights do not fit")
        self._check_latents(where)
        if self.tokenizer is not None:
            size, rows = ChatText(self.tokenizer.parent).tokenizer.get_vocab_size(), self.config.llm.vocab_size
            if size > rows:
                raise ConfigurationError(
                    f"{self.tokenizer} has {size} tokens and the model {rows}; name the tokenizer it was trained with."
                )
        return self

    def _check_latents(self, where: object) -> None:
        """The autoencoder's latents are those that the model draws and sees."""
        for what, model, autoencoder in (
            ("latent channels", self.config.mar.latent_channels, self.autoencoder.latent_channels),
            ("pixels a latent", self.config.latent_stride, self.autoencoder.stride),
        ):
            if model != autoencoder:
                raise HarmonError(
                    f"{where}: the model has {model} {what} and its autoencoder {autoencoder}; name the autoencoder "
                    "that it was trained with."
                )

    def check_shared(self) -> None:
        """Raises ConfigurationError where another encoder than MAR's sees, which no published form can hold."""
        if not self.config.shares_encoder:
            raise ConfigurationError(
                f"This model sees with {self.config.understanding_encoder}, a study of the paper's Table 6 that no "
                "published form can hold; use its run folder."
            )

    def fingerprint(self) -> str:
        """16 hex digits that tell weights apart, equal for every form of the same: from each tensor's name,
        type, shape and first 4 KiB, which cost little to read and which any training changes.
        """
        digest = hashlib.sha256()
        latent = {f"vae.{name}": value for name, value in self.autoencoder_tensors.items()}
        for name, value in sorted({**self.tensors, **latent}.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            first = value.detach().cpu().flatten()[: 4096 // value.itemsize].contiguous()
            digest.update(first.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def named_tokenizer(self) -> Path:
        """tokenizer.json. Raises ConfigurationError where there is none."""
        if self.tokenizer is None:
            raise ConfigurationError(
                "Released files hold no tokenizer: name a Qwen2.5-Instruct folder that holds tokenizer.json with "
                "--tokenizer FOLDER, or lay tokenizer.json beside them."
            )
        return self.tokenizer


def without_tied_head(tensors: Mapping[str, Tensor], config: HarmonConfig, where: object) -> dict[str, Tensor]:
    """`tensors` without a head that repeats the tied embedding.

    Raises:
        HarmonError: the head is tied and yet differs from the embedding.
    """
    given = dict(tensors)
    if config.llm.tie_word_embeddings and HEAD in given and EMBEDDING in given:
        head = given.pop(HEAD)
        if not same_bits(head, given[EMBEDDING]):
            raise HarmonError(f"{where}: {HEAD} differs from {EMBEDDING}, which it is tied to; the file is damaged.")
    return given


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have equal types, shapes and bytes (so NaN equals itself)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (value.reshape(-1).contiguous().view(torch.uint8) for value in (one, other))
    return torch.equal(first, second)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, memory-mapped. Raises HarmonError where it cannot be read."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HarmonError(f"The weights {path} cannot be read ({error}); name a safetensors file.") from None
    return tensors


def _compare(own: Mapping[str, torch.Size], given: Mapping[str, Tensor], problem: str) -> None:
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unexpected" for name in given if name not in own]
    for name, shape in own.items():
        value = given.get(name)
        if value is not None and value.shape != shape:
            problems.append(f"{name} has shape {tuple(value.shape)} in place of {tuple(shape)}")
        elif value is not None and not value.is_floating_point():
            problems.append(f"{name} holds {str(value.dtype).removeprefix('torch.')}, not floats")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise HarmonError(f"{problem}: {'; '.join(problems[:10])}{more}.")
