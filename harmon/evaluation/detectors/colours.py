"""The colour of detected objects by CLIP, as GenEval's official code tells it.

An object's pixels on grey (#999), cut to its box, against three sentences for each colour; the official network is
OpenAI's ViT-L/14. djghosh13/geneval `evaluation/evaluate_images.py::color_classification`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from harmon.evaluation.detectors.seen import Seen
from harmon.evaluation.scorers.geneval import COLOURS
from pipelines.errors import ConfigurationError
from pipelines.storage import file_sha256

ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's weights were trained with QuickGELU, which their official loader implies
GREY = "#999"
BATCH = 16


class ClipColours:
    """A CLIP model that names colours."""

    def __init__(self, weights: Path, architecture: str = ARCHITECTURE, device: str = "cpu") -> None:
        """Load `weights` (.safetensors, or .pt read without unpickling code) of open_clip's network `architecture`.

        Raises ConfigurationError where they are absent or of another network.
        """
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        if not weights.is_file():
            raise ConfigurationError(
                f"The CLIP weights {weights} are absent; run python -m filtering.weights clip FOLDER."
            )
        try:
            model: Any = open_clip.create_model(architecture, pretrained=str(weights), weights_only=True)
        except RuntimeError as problem:
            raise ConfigurationError(
                f"{weights} does not hold {architecture}: {str(problem).splitlines()[0]}"
            ) from None
        self.label = f"CLIP {architecture} ({file_sha256(weights)[:12]})"
        self._model = model.eval().requires_grad_(False).to(device)
        self._prepare: Any = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
        self._tokenizer: Any = open_clip.get_tokenizer(architecture)
        self._device = device
        self._sentences: dict[str, Tensor] = {}

    def colours(self, image: Image.Image, name: str, objects: Sequence[Seen]) -> list[str]:
        """As `ColourClassifier.colours`."""
        found: list[str] = []
        for start in range(0, len(objects), BATCH):
            crops = [self._prepare(crop(image, one)) for one in objects[start : start + BATCH]]
            with torch.inference_mode():
                pictures_BD = normalize(self._model.encode_image(torch.stack(crops).to(self._device)).float(), dim=-1)
                best = (pictures_BD @ self._colours_of(name).T).argmax(1)
            found += [COLOURS[number] for number in best.tolist()]
        return found

    def _colours_of(self, name: str) -> Tensor:
        """A direction for each colour of things called `name`, [10, D]: the mean over its sentences."""
        if name not in self._sentences:
            rows = []
            for colour in COLOURS:
                tokens = self._tokenizer(sentences(colour, name)).to(self._device)
                each = normalize(self._model.encode_text(tokens).float(), dim=-1)
                rows.append(normalize(each.mean(0), dim=0))
            self._sentences[name] = torch.stack(rows)
        return self._sentences[name]


def sentences(colour: str, name: str) -> list[str]:
    """The official three."""
    return [f"a photo of a {colour} {name}", f"a photo of a {colour}-colored {name}", f"a photo of a {colour} object"]


def crop(image: Image.Image, seen: Seen) -> Image.Image:
    """What CLIP is shown of an object: its pixels on grey where they are known, cut to its box."""
    if seen.mask is not None:
        shown = Image.fromarray(seen.mask.astype(np.uint8) * 255)
        image = Image.composite(image, Image.new("RGB", image.size, GREY), shown)
    left, top, right, bottom = map(round, seen.detection.box)
    return image.crop((left, top, right, bottom))
