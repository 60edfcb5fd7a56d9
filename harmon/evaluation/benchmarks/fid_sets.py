"""Captions whose pictures are compared by FID: MJHQ-30K and 30,000 captions of COCO val2014 (EVALS.md 3.2 and 3.3).

MJHQ-30K         playgroundai/MJHQ-30K: meta_data.json and mjhq30k_imgs.zip, or a folder of that name or `images`
MSCOCO-30K       MS-COCO_val2014_30k_captions.csv of boomb0om/text2image-benchmark (image_id, text), and val2014
"""

from collections.abc import Iterator
from pathlib import Path

from harmon.evaluation.benchmarks.dpg import read_csv
from harmon.evaluation.files.found import file_of, json_mapping
from harmon.evaluation.files.images import Images
from harmon.evaluation.question import Prompt

CATEGORIES = (
    "animals", "art", "fashion", "food", "indoor", "landscape", "logo", "people", "plants", "vehicles",
)  # fmt: skip
"""Of MJHQ-30K, 3,000 prompts each."""
CAPTIONS = "MS-COCO_val2014_30k_captions.csv"


def read_mjhq(folder: Path, references: bool = False) -> Iterator[Prompt]:
    """The prompts in the order of the file, with their pictures where `references` are wanted."""
    path = file_of(folder, "**/meta_data.json", named="MJHQ-30K")
    images = Images(folder, ("mjhq30k_imgs", "images", "mjhq30k_imgs.zip")) if references else None
    for name, row in json_mapping(path):
        category = row.one_of(CATEGORIES, "category")
        pictures = (images.find(row.where, f"{category}/{name}.jpg"),) if images else ()
        yield Prompt("mjhq-30k", name, row.text("prompt"), 1, {"category": category}, {}, pictures)


def read_coco(folder: Path, references: bool = False) -> Iterator[Prompt]:
    """The captions in the order of the file, one a picture, with the pictures where `references` are wanted."""
    path = file_of(folder, f"**/{CAPTIONS}", named="captions")
    images = Images(folder, ("val2014", "images/val2014", "val2014.zip")) if references else None
    for row in read_csv(path, ("image_id", "text")):
        number = row.number("image_id")
        pictures = (images.find(row.where, f"COCO_val2014_{number:012}.jpg"),) if images else ()
        yield Prompt("mscoco-30k", str(number), row.text("text"), 1, {}, {}, pictures)
