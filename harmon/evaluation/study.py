"""The paper's representation study over some encoders and labelled pictures (Figures 2 and A1, Table 6's first column):
linear probes, maps of where they look, and zero-shot reconstructions.

    OUT/features/      features, kept by content (harmon.evaluation.features)
    OUT/study.json     every number with its settings
    OUT/report.html    the same as one page, with the pictures (harmon.evaluation.study_page)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from harmon.evaluation.encoders import Encoder, MarEncoder, Pooling, move, pooled_map
from harmon.evaluation.features import batches, extract
from harmon.evaluation.gradcam import chance_inside, grad_cam, overlaid, points_inside
from harmon.evaluation.labelled import LabelledPicture, LabelledSet
from harmon.evaluation.probe import ProbeConfig, Probed, ProbeHead, probe
from harmon.evaluation.reconstruction import Pixels, Reconstructed, ReconstructionConfig, reconstruct, report
from harmon.evaluation.scenes import Score
from harmon.pictures import levels
from pipelines.settings import Settings

VERSION = 1
RESULTS, REPORT = "study.json", "report.html"
Progress = Callable[[int, int], None]


class StudyConfig(Settings):
    """What is measured and how much of it is shown."""

    pooling: Pooling = "mean"
    probe: ProbeConfig = ProbeConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    shown: int = Field(default=8, ge=0)
    """Pictures held back that are shown with their maps, and reconstructed."""
    pointed: int = Field(default=200, ge=0)
    """Pictures held back, of those with a known place, whose maps are checked against it."""


@dataclass(frozen=True)
class Maps:
    """Where one encoder's probe looks: `overlays` are the shown pictures under their maps; `pointing` counts maps whose
    strongest position lies on the thing that the label names, None where no place is known."""

    originals: tuple[Pixels, ...]
    overlays: tuple[Pixels, ...]
    pointing: Score | None


@dataclass(frozen=True)
class Studied:
    """All that was found out about one encoder."""

    encoder: Encoder
    probed: Probed
    maps: Maps | None
    """None where the head reads buffers, which lie nowhere."""
    reconstructed: tuple[Reconstructed, ...]
    """Empty where the encoder is no MAR, which alone has a decoder of tokens."""

    def report(self) -> dict[str, Any]:
        """As JSON."""
        pointing = self.maps.pointing if self.maps else None
        return {
            "encoder": self.encoder.name,
            "weights": self.encoder.key,
            "px": self.encoder.px,
            "stand_in": self.encoder.stand_in,
            "probe": self.probed.report(),
            "pointing": pointing.report() if pointing else None,
            "reconstruction": _finite(report(self.reconstructed)) if self.reconstructed else None,
        }


@dataclass(frozen=True)
class Study:
    """The whole study; `shown` are the pictures of the galleries, `extra` names the files reconstructed beside them."""

    labelled: LabelledSet
    config: StudyConfig
    shown: tuple[LabelledPicture, ...]
    extra: tuple[str, ...]
    encoders: tuple[Studied, ...]

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "version": VERSION,
            "data": self.labelled.name,
            "pictures": len(self.labelled.pictures),
            "classes": list(self.labelled.classes),
            "settings": self.config.model_dump(mode="json"),
            "encoders": [one.report() for one in self.encoders],
        }


def study(
    encoders: Sequence[Encoder],
    labelled: LabelledSet,
    out: Path,
    config: StudyConfig,
    extra: Sequence[Path] = (),
    device: str = "cpu",
    on_progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
) -> Study:
    """Study `encoders` on `labelled`, and write OUT/study.json and OUT/report.html. Features that OUT holds are read.

    `extra` are picture files to reconstruct beside those held back. `on_progress` opens, for an encoder's name, what is
    told how many of how many pictures have their features.

    Raises:
        ConfigurationError: an encoder has nothing to pool as `config` says.
        HarmonError: no picture of a side can be decoded, or features are damaged.
    """
    from harmon.evaluation.study_page import study_page

    shown = _shown(labelled, config.shown)
    more = tuple(LabelledPicture(file.read_bytes, file.name, trains=False) for file in extra)
    studied = []
    for encoder in encoders:
        move(encoder, device)
        with on_progress(encoder.name) if on_progress else nullcontext() as told:
            features = extract(encoder, labelled.pictures, out / "features", config.pooling, device, told)
        probed, head = probe(encoder.name, features, labelled, config.probe, device)
        maps = None if config.pooling == "buffers" else _maps(encoder, head, labelled, shown, config, device)
        studied.append(Studied(encoder, probed, maps, _reconstructed(encoder, (*shown, *more), config, device)))
    result = Study(labelled, config, shown, tuple(one.label for one in more), tuple(studied))
    _write(out / RESULTS, json.dumps(result.report(), indent=1) + "\n")
    _write(out / REPORT, study_page(result).render())
    return result


def _shown(labelled: LabelledSet, number: int) -> tuple[LabelledPicture, ...]:
    """Pictures held back of every class in turn."""
    found: dict[str, list[LabelledPicture]] = {label: [] for label in labelled.classes}
    for picture in labelled.pictures:
        if not picture.trains:
            found[picture.label].append(picture)
    rounds = max(map(len, found.values()))
    in_turn = [some[turn] for turn in range(rounds) for some in found.values() if turn < len(some)]
    return tuple(in_turn[:number])


def _maps(
    encoder: Encoder,
    head: ProbeHead,
    labelled: LabelledSet,
    shown: Sequence[LabelledPicture],
    config: StudyConfig,
    device: str,
) -> Maps:
    placed = [one for one in labelled.pictures if not one.trains and one.box][: config.pointed]
    right, chances = 0, []
    for picture, _, cam in _cams(encoder, head, labelled, placed, config.pooling, device):
        assert picture.box is not None
        right += points_inside(cam, picture.box)
        chances.append(chance_inside(tuple(cam.shape), picture.box))
    pointing = Score(right, len(chances), sum(chances) / len(chances)) if chances else None
    found = list(_cams(encoder, head, labelled, shown, config.pooling, device))
    originals = tuple(original for _, original, _ in found)
    return Maps(originals, tuple(overlaid(original, cam) for _, original, cam in found), pointing)


def _cams(
    encoder: Encoder,
    head: ProbeHead,
    labelled: LabelledSet,
    pictures: Sequence[LabelledPicture],
    pooling: Pooling,
    device: str,
) -> list[tuple[LabelledPicture, Pixels, Tensor]]:
    """Each picture with its pixels and the map of its own label."""
    number = {label: place for place, label in enumerate(labelled.classes)}
    found = []
    for rows, images in batches(encoder, pictures):
        classes = torch.tensor([number[pictures[row].label] for row in rows], device=device)

        def score(maps: Tensor, classes: Tensor = classes) -> Tensor:
            logits: Tensor = head.linear(pooled_map(maps, pooling))
            return logits.gather(1, classes[:, None])[:, 0]

        with torch.no_grad():
            maps = head.normalised(encoder.maps(images.to(device)))
        cams = grad_cam(maps, score).cpu()
        originals = levels(images).numpy()
        found += [(pictures[row], original, cam) for row, original, cam in zip(rows, originals, cams, strict=True)]
    return found


def _reconstructed(
    encoder: Encoder, pictures: Sequence[LabelledPicture], config: StudyConfig, device: str
) -> tuple[Reconstructed, ...]:
    if not isinstance(encoder, MarEncoder):
        return ()
    found: list[Reconstructed] = []
    for rows, images in batches(encoder, pictures):
        names = [f"{row} {pictures[row].label}" for row in rows]
        found += reconstruct(encoder, images.to(device), config.reconstruction, names)
    return tuple(found)


def _finite(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no infinity: the noise ratio of equal pictures is null."""
    return {
        name: {what: round(value, 4) if math.isfinite(value) else None for what, value in one.items()}
        for name, one in scores.items()
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_name(f".{path.name}.{os.getpid()}.part")
    attempt.write_text(text, encoding="utf-8")
    attempt.replace(path)
