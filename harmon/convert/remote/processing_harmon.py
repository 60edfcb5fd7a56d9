"""A Harmon folder's processor: prompts and pictures as the model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from harmon.pictures import padded_square
from harmon.prompts import padded
from harmon.text import ChatText

_FILES = ("processor_config.json", "tokenizer.json", "tokenizer_config.json")
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class HarmonProcessor(ProcessorMixin):  # type: ignore[misc]
    """Without pictures, prompts to draw from; with pictures, questions about them.

    Text is built with the chat template that Harmon was trained with, and content never becomes a special
    token.
    """

    def __init__(self, folder: str, image_stride: int, buffer_size: int, patch_size: int, px: int) -> None:
        self.text = ChatText(folder)
        self.folder, self.image_stride, self.buffer_size = folder, image_stride, buffer_size
        self.patch_size, self.px = patch_size, px

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> HarmonProcessor:
        """The processor of a folder or a hub's repository."""
        values, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        *_, file = [cached_file(pretrained_model_name_or_path, name, **hub) for name in _FILES]
        sizes = ("image_stride", "buffer_size", "patch_size", "px")
        return cls(str(Path(file).parent), **{name: int(values[name]) for name in sizes})

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        *,
        negative: str | None = None,
        guidance: bool = True,
        px: int | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Model inputs for one or more texts.

        Without `images`: `input_ids` and `attention_mask` of prompts, and behind them, with `guidance`, as
        many unconditional ones (`negative`: what the pictures shall not show). With `images` (RGB pictures,
        one a text): questions about them, and `pixel_values` [B, 3, px, px] in [-1, 1].
        """
        texts = [text] if isinstance(text, str) else list(text)
        if images is None:
            prompts = [self.text.generation_prompt(one) for one in texts]
            prompts += [self.text.generation_prompt(negative)] * (len(texts) if guidance else 0)
            return BatchFeature(self._padded(prompts))
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        if len(pictures) != len(texts):
            raise ValueError(f"{len(texts)} questions cannot be asked about {len(pictures)} pictures; give one each")
        side = px or self.px
        slots = (side // self.image_stride // self.patch_size) ** 2 + self.buffer_size
        pixels = np.stack([padded_square(picture.convert("RGB"), side) for picture in pictures])
        prompts = [self.text.question_prompt(question, slots) for question in texts]
        return BatchFeature({**self._padded(prompts), "pixel_values": torch.from_numpy(pixels)})

    def decode(self, token_ids: Any, **_: Any) -> str:
        """Text of an answer's ids."""
        return self.text.decode(token_ids)

    def batch_decode(self, sequences: Any, **_: Any) -> list[str]:
        """Text of each answer's ids."""
        return [self.decode(one) for one in sequences]

    def to_pictures(self, drawn: Tensor) -> list[Image.Image]:
        """What `draw` gave, as Pillow's pictures."""
        return [Image.fromarray(one) for one in drawn.cpu().numpy()]

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Write a folder that AutoProcessor and AutoTokenizer load: _FILES, and this class's code."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            data = (Path(self.folder) / name).read_bytes()  # before writing: the folder may be the same
            (target / name).write_bytes(data)
        custom_object_save(self, target)

    def __repr__(self) -> str:
        return f"HarmonProcessor({self.folder}, px={self.px})"

    def _padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        ids, mask = padded(prompts, self.text.pad, torch.device("cpu"))
        return {"input_ids": ids, "attention_mask": mask}
