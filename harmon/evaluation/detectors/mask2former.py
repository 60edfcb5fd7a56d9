"""Mask2Former of Hugging Face Transformers as GenEval's detector. Not the official one, and every output says so.

The official evaluation runs MMDetection 2.x with weights of its own (mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco).
This one takes a Transformers checkpoint of COCO instances, such as facebook/mask2former-swin-small-coco-instance: the
same architecture, other weights and another resizing, so its score is "GenEval (Transformers Mask2Former)".

From queries to boxes it goes as MMDetection does: the 100 likeliest pairs of query and class, their score times the
mean probability of the mask where that is above one half, and the box around those pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from harmon.evaluation.detectors.seen import Seen
from harmon.evaluation.encoders import weights_hash
from harmon.evaluation.scorers.geneval import OFFICIAL, Detection
from pipelines.coco_names import COCO_NAMES
from pipelines.errors import ConfigurationError, HarmonError

MOST_OBJECTS = 100  # MMDetection's `max_per_image` of its COCO configurations
OTHER_NAMES = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "hair dryer": "hair drier",
}
"""How checkpoints call some of COCO's classes, by GenEval's names."""


class Mask2FormerDetector:
    """A Transformers checkpoint, ready to detect."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load the checkpoint in `folder`: config.json, preprocessor_config.json, model.safetensors.

        Raises:
            ConfigurationError: there is no such folder, or its classes are not COCO's 80 in their order.
            HarmonError: it cannot be loaded as a Mask2Former.
        """
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"{folder} holds no config.json; fetch a checkpoint such as "
                "facebook/mask2former-swin-small-coco-instance and name its folder."
            )
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as problem:
            first = str(problem).splitlines()[0]
            raise HarmonError(f"{folder} cannot be loaded as a Mask2Former: {first}") from None
        check_classes(folder, model.config.id2label)
        digest = weights_hash(model.state_dict().items())
        self.label = f"Transformers Mask2Former {folder.name} ({digest[:12]}), not GenEval's official detector"
        self._model = model.eval().requires_grad_(False).to(device)
        self._device = device

    def detect(self, image: Image.Image) -> Mapping[str, list[Seen]]:
        """As `Detector.detect`; what no rule of GenEval counts (a score of 0.3 or less) is left out."""
        inputs = self._processor(images=image, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            found = self._model(**inputs)
        queries_QHW, shown_HW = found.masks_queries_logits[0], inputs["pixel_mask"][0]
        seen: dict[str, list[Seen]] = defaultdict(list)
        for number, one in instances(found.class_queries_logits[0], queries_QHW, shown_HW, (image.height, image.width)):
            seen[COCO_NAMES[number]].append(one)
        return seen


def instances(
    classes_QC: Tensor,
    masks_Qhw: Tensor,
    shown_HW: Tensor,
    size: tuple[int, int],
    threshold: float = OFFICIAL.threshold,
) -> list[tuple[int, Seen]]:
    """Class number and object of each detection above `threshold`.

    `classes_QC` are logits with "no object" last, `masks_Qhw` logits on a coarser grid of the padded input, `shown_HW`
    is 1 where that holds the picture and not its padding, and `size` the picture's height and width.
    """
    scores_QC = classes_QC.softmax(-1)[:, :-1]
    classes = scores_QC.shape[1]
    top, places = scores_QC.flatten().topk(min(MOST_OBJECTS, scores_QC.numel()))
    above = top > threshold  # a mask only ever lowers a score, so the others need none
    top, places = top[above], places[above]
    if not len(top):
        return []
    masks = _full_size(masks_Qhw[places // classes], shown_HW, size)
    inside = masks > 0
    share = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    found: list[tuple[int, Seen]] = []
    for place, score, mask in zip(places.tolist(), (top * share).tolist(), inside.cpu().numpy()):
        if score <= threshold:
            continue
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.append((place % classes, Seen(Detection(box, score), mask)))
    return found


def check_classes(folder: Path, names: Mapping[int, str]) -> None:
    """Raise ConfigurationError unless a checkpoint's classes are COCO's 80 in their order."""
    told = [names[number] for number in sorted(names)]
    if len(told) != len(COCO_NAMES):
        raise ConfigurationError(
            f"{folder} tells {len(told)} classes apart, where GenEval needs COCO's 80 objects; name a checkpoint of "
            "COCO instances."
        )
    for number, (name, wanted) in enumerate(zip(told, COCO_NAMES)):
        if OTHER_NAMES.get(name, name) != wanted:
            raise ConfigurationError(
                f"{folder} calls class {number} {name!r}, where COCO has {wanted!r}; name one of COCO instances."
            )


def _full_size(masks_Qhw: Tensor, shown_HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits at the picture's size, its padding cut off."""
    padded = interpolate(masks_Qhw.unsqueeze(0), tuple(shown_HW.shape), mode="bilinear", align_corners=False)
    height, width = int(shown_HW[:, 0].sum()), int(shown_HW[0].sum())
    shown = padded[:, :, :height, :width]
    return interpolate(shown, size, mode="bilinear", align_corners=False)[0]
