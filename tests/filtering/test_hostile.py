"""Bytes that somebody made up end as a reason in one row, never as the end of a step."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filtering.clarity import score_clarity
from filtering.decode import Undecodable, decoded
from filtering.embedding import Clip, embed_images
from filtering.geometry import Geometry
from filtering.phash import phash, write_hashes
from filtering.plan import plan
from filtering.preprocess import pixels
from filtering.resize import Resize
from filtering.rules import HashList
from filtering.selection import Selection
from filtering.survey import contact_sheet, survey_page
from pipelines.errors import HarmonError
from tests.filtering.pictured import Row, jpeg, tiny_clip, write_rows

ROOT = Path(__file__).parents[2]


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def broken_png() -> bytes:
    """A PNG whose second chunk of pixels has a name of control characters: Pillow raises SyntaxError for it."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    first, _, rest = png(Image.fromarray(noise)).partition(b"IDAT")
    middle, name, last = rest.partition(b"IDAT")
    assert name
    return first + b"IDAT" + middle + b"\0\1\2\3" + last


HOSTILE = {
    "html": b"<html>",
    "nothing": b"",
    "cut": jpeg(1, (128, 128))[:300],
    "broken": broken_png(),
    "bomb": png(Image.new("1", (20_000, 20_000))),
    "large": png(Image.new("1", (9_000, 9_000))),
}


def test_every_step_that_decodes_finishes_and_names_what_it_could_not_decode(tmp_path: Path) -> None:
    rows = [Row(name, data=data) for name, data in HOSTILE.items()]
    dataset = write_rows(tmp_path / "toys", [*rows, Row("good", 2), Row("strip", data=png(Image.new("RGB", (900, 2))))])
    clip = Clip(tiny_clip(tmp_path), "tiny-stand-in")
    commits = [write_hashes(dataset), score_clarity(dataset), embed_images(dataset, clip)]
    assert [dict(commit.failed) for commit in commits] == [{"undecodable": len(HOSTILE)}] * 3
    made = plan([dataset], Selection(geometry=Geometry(min_side=1)))
    assert contact_sheet(made, tmp_path / "sheet.jpg") == len(rows) + 2
    survey_page(made, tmp_path / "page.html", "toys")
    assert (tmp_path / "page.html").read_text().count("cannot be decoded") >= len(HOSTILE)


def test_a_picture_without_the_hash_that_a_list_asks_for_does_not_pass(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("broken", data=HOSTILE["broken"]), Row("good", 2)])
    write_hashes(dataset)
    (tmp_path / "bad.txt").write_text(hashlib.md5(b"of another").hexdigest())
    listed = HashList(file=tmp_path / "bad.txt")
    made = plan([dataset], Selection(geometry=Geometry(min_side=1), hash_lists=(listed,)))
    assert (made.kept, made.counts["unscored"]) == (1, 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_decoded_is_refused_in_one_way(name: str) -> None:
    for use in (decoded, phash, lambda data: pixels(data, 32)):
        with pytest.raises(Undecodable):
            use(HOSTILE[name])  # type: ignore[operator]
    with pytest.raises(HarmonError, match="cannot be made smaller"):
        Resize(shorter_side=16).apply(HOSTILE[name], "png", "key")


STRIP = """
import io, sys
from PIL import Image
from benchmarks.memory import peak_memory
from filtering.preprocess import pixels
out = io.BytesIO()
Image.new("RGB", (30_000, 3), "red").save(out, "PNG")
before = peak_memory()
for resizer in ("pillow", "torch"):
    found = pixels(out.getvalue(), 224, resizer)
    assert found.shape == (224, 224, 3) and (found == (255, 0, 0)).all()
print((peak_memory() - before) / 2**20)
"""


def test_a_thin_strip_is_preprocessed_in_little_memory() -> None:
    """Its shorter side made 224, the whole strip would take 1.5 GB."""
    done = subprocess.run([sys.executable, "-c", STRIP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 150
