"""Labelled pictures that encoders are probed on: ImageNet's folders, one of our datasets, or small sets at hand.

A set is a list of pictures that are read when they are needed; nothing is decoded here.

    digits          scikit-learn's 1,797 handwritten digits, every fifth of them held back
    scene-shapes    2,000 scenes of one object (pipelines.scenes), the shape is the label; every fifth held back
    scene-colours   the same scenes, labelled by colour
    FOLDER          FOLDER/train/LABEL/* and FOLDER/val/LABEL/*, or FOLDER/LABEL/* with a fifth held back
    DATASET         our dataset; the label is a column, as `source.caption`; a fifth held back

A fifth is held back by the hash of the path or the key, so a picture is on the same side whatever else there is.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harmon.seeds import stream
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.manifest import IMAGES, SOURCE
from pipelines.scenes import Scene, make_scene, render
from pipelines.shards import ImageShard

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the picture's sides."""

SMALL = ("digits", "scene-shapes", "scene-colours")
SCENES = 2000
SCENE_SEED = 9_041
SCENE_PX = 128
HELD_BACK = 5  # one picture in so many
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class LabelledPicture:
    """One picture. `trains`: a head is trained on it; otherwise it is held back and measured on."""

    read: Callable[[], bytes]
    label: str
    trains: bool
    box: Box | None = None
    """Where the thing is that the label names, if that is known."""


@dataclass(frozen=True)
class LabelledSet:
    """Pictures of both sides under one name."""

    name: str
    pictures: tuple[LabelledPicture, ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Labels of the pictures trained on, the commonest first and equally common ones in their order as text."""
        found = Counter(picture.label for picture in self.pictures if picture.trains)
        return tuple(sorted(found, key=lambda label: (-found[label], label)))

    def limited(self, number: int) -> LabelledSet:
        """`number` of the pictures, drawn without regard to their order. Raises ConfigurationError as `checked`."""
        drawn = sorted(range(len(self.pictures)), key=lambda index: stream("limit", index))[:number]
        return replace(self, pictures=tuple(self.pictures[index] for index in sorted(drawn))).checked()

    def checked(self) -> LabelledSet:
        """Itself. Raises ConfigurationError where one side is empty, there is one class, or a label has no picture to
        train on."""
        held_back = {picture.label for picture in self.pictures if not picture.trains}
        if not held_back or len(self.classes) < 2:
            raise ConfigurationError(
                f"{self.name} cannot be probed: it has {len(self.classes)} labels to train on and {len(held_back)} "
                "among the pictures held back; give at least two labels and pictures on both sides."
            )
        if untrained := sorted(held_back - set(self.classes)):
            raise ConfigurationError(
                f"{self.name} holds back pictures of {untrained[0]!r}, which none to train on shows "
                f"({len(untrained)} such labels); give every label pictures on both sides."
            )
        return self


def open_labelled(name: str, label: str = f"{SOURCE}.caption") -> LabelledSet:
    """The set called `name` (see above); `label` is the column of a dataset.

    Raises:
        ConfigurationError: there is no such set, or it has no two labels on both sides.
        HarmonError: the dataset is damaged.
    """
    if name == "digits":
        return LabelledSet(name, tuple(_digits())).checked()
    if name in SMALL:
        return LabelledSet(name, tuple(_scenes(name))).checked()
    folder = Path(name)
    if name.startswith("s3://") or (folder / "manifest").is_dir():
        return LabelledSet(name, tuple(_of_dataset(Dataset(name), label))).checked()
    if not folder.is_dir():
        raise ConfigurationError(f"There are no pictures {name}; name a folder, a dataset, or {', '.join(SMALL)}.")
    return LabelledSet(name, tuple(_of_folder(folder))).checked()


def scene_of(index: int) -> Scene:
    """Scene `index` of the sets `scene-shapes` and `scene-colours`: one object, of the split that nothing trains on."""
    return make_scene(SCENE_SEED, index, objects=1, split="unseen")


def png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W] or [H, W, 3] as PNG."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def _digits() -> Iterator[LabelledPicture]:
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = (found.images / 16 * 255).round().astype(np.uint8)
    for index, (picture, label) in enumerate(zip(levels, found.target.tolist(), strict=True)):
        yield LabelledPicture(partial(png, picture), str(label), trains=bool(index % HELD_BACK))


def _scenes(name: str) -> Iterator[LabelledPicture]:
    for index in range(SCENES):
        (item,) = scene_of(index).objects
        label = item.shape if name == "scene-shapes" else item.colour
        box = (item.x - item.radius, item.y - item.radius, item.x + item.radius, item.y + item.radius)
        yield LabelledPicture(partial(_scene_png, index), label, bool(index % HELD_BACK), box)


def _scene_png(index: int) -> bytes:
    return png(render(scene_of(index), SCENE_PX))


def _of_folder(folder: Path) -> Iterator[LabelledPicture]:
    """Pictures below LABEL folders, in the order of their paths."""
    sides = {side: folder / side for side in ("train", "val") if (folder / side).is_dir()}
    for side, root in sides.items() if len(sides) == 2 else (("", folder),):
        for path in sorted(root.glob("*/*")):
            if path.suffix.lower() in SUFFIXES:
                held_back = side == "val" if side else _is_held_back(str(path.relative_to(root)))
                yield LabelledPicture(path.read_bytes, path.parent.name, not held_back)


def _of_dataset(dataset: Dataset, label: str) -> Iterator[LabelledPicture]:
    """Pictures that have a label, shard by shard."""
    group, _, column = label.rpartition(".")
    if group not in (groups := dataset.groups()):
        raise ConfigurationError(
            f"{dataset.name} has no column group {group!r} for the label {label!r}; it has {', '.join(groups)}."
        )
    for shard in dataset.shard_numbers:
        if dataset.entry(IMAGES, shard) is None:
            continue
        table = dataset.table(group, shard)
        if column not in table.column_names:
            raise ConfigurationError(f"{dataset.name} has no column {column!r} in {group}: {table.column_names}.")
        images = dataset.images(shard)
        present = set(images.keys())
        for key, value in zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True):
            if value is not None and key in present:
                yield LabelledPicture(partial(_stored, images, key), str(value), not _is_held_back(key))


def _stored(images: ImageShard, key: str) -> bytes:
    image = images.find(key)
    assert image is not None  # its key was among the shard's
    return bytes(image.data)


def _is_held_back(name: str) -> bool:
    return stream("held back", name) % HELD_BACK == 0
