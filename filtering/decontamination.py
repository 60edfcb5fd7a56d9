"""Keeps evaluation data out of training data: by hash lists, and by the wording of prompts.

A list is a Parquet file with the columns `benchmark`, `item`, `sha256`, `phash` (16 hexadecimal digits) and `prompt`,
all text, null where an item has none: MSCOCO val, MJHQ-30K, the VQA benchmarks. The evaluation part writes them.
GenEval's prompts are known by their templates (EVALS.md 3.1), since training data copies the templates rather than the
prompts: about 10,000 of BLIP3o-60k's do.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filtering.phash import FARTHEST, GROUP, BandedIndex, numbers
from filtering.rows import ShardRows
from filtering.rules import Check, told
from pipelines.columns import conform, read_columns
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import SOURCE
from pipelines.settings import Settings
from pipelines.storage import file_sha256

LIST_SCHEMA = pa.schema([(name, pa.string()) for name in ("benchmark", "item", "sha256", "phash", "prompt")])

_THING = r"(?:[a-z][a-z'-]*\s+){0,3}[a-z][a-z'-]*"  # an object's name with, at most, a colour before it
_PLACE = r"(?:left of|right of|above|below)"
GENEVAL = re.compile(
    rf"a photo of (?:an? {_THING}(?: (?:and|{_PLACE}) an? {_THING})?|(?:two|three|four) {_THING})", re.IGNORECASE
)
"""GenEval's six templates: one object, two objects, count, colour, position, two colours. The whole caption has to be
one; a longer sentence that begins like one is not."""


class Decontamination(Settings):
    """What may not be trained on."""

    lists: tuple[Path, ...] = ()
    """Parquet files of evaluation items."""
    phash_distance: int = Field(default=7, ge=0, le=FARTHEST)
    """Bits of 64 that a training image's hash may differ in from an evaluation image's and still be it."""
    geneval_templates: bool = True
    """Drop captions that are GenEval prompts by their wording."""
    captions: tuple[str, ...] = (SOURCE,)
    """Column groups whose texts are compared with prompts: `source` and caption versions."""

    @cached_property
    def _items(self) -> pa.Table:
        return pa.concat_tables([read_list(path) for path in self.lists] or [LIST_SCHEMA.empty_table()])

    @property
    def sha256(self) -> list[str]:
        """Of each list, which stand for the lists in step keys."""
        return [file_sha256(path) for path in self.lists if read_list(path) is not None]

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """Checks of images against sha256 and phash, then of captions against prompts and templates."""
        yield from self._images(rows)
        for group in self.captions:
            if group != SOURCE and not rows.has(group):
                continue
            texts = rows.values(group, "caption" if group == SOURCE else "text")
            prompts = self._prompts
            found = [prompts.get(normalised(text)) if text else None for text in texts]
            known = np.array([one is not None for one in found], dtype=bool)
            yield Check("evaluation_prompt", known, told("the prompt of ", found))
            if self.geneval_templates:
                like = np.array([bool(text) and is_geneval(text) for text in texts], dtype=bool)
                yield Check("geneval_template", like, told("", texts))

    def _images(self, rows: ShardRows) -> Iterator[Check]:
        items, pictures = self._items, rows.pictures
        known = items.filter(pc.is_valid(items["sha256"]))
        if known.num_rows:
            own = rows.column(SOURCE, "sha256")
            place = pc.index_in(own, known["sha256"].combine_chunks()).to_numpy()
            yield Check(
                "evaluation_image",
                pictures & ~np.isnan(place.astype(float)),
                lambda row: _named(known, int(place[row])),
            )
        hashed, index = self._index
        if hashed.num_rows:
            texts = rows.values(GROUP, "phash")
            there = np.flatnonzero([text is not None for text in texts])
            nearest = np.full(len(rows), -1)
            for who, whom in index.pairs(numbers([texts[row] for row in there]), self.phash_distance):
                nearest[there[who]] = whom
            like = pictures & (nearest >= 0)
            yield Check("evaluation_image", like, lambda row: f"looks like {_named(hashed, int(nearest[row]))}")

    @cached_property
    def _index(self) -> tuple[pa.Table, BandedIndex]:
        hashed = self._items.filter(pc.is_valid(self._items["phash"]))
        return hashed, BandedIndex(numbers(hashed["phash"].to_pylist()))

    @cached_property
    def _prompts(self) -> dict[str, str]:
        """Normalised prompt to the item that it belongs to."""
        rows = self._items.filter(pc.is_valid(self._items["prompt"])).to_pylist()
        return {normalised(row["prompt"]): f"{row['benchmark']} {row['item']}" for row in rows}


def read_list(path: Path) -> pa.Table:
    """A list of evaluation items, checked. Raises ConfigurationError for anything else."""
    try:
        table = conform(read_columns(path), LIST_SCHEMA, str(path))
    except (HarmonError, FileNotFoundError) as problem:
        raise ConfigurationError(f"The list of evaluation items {path} cannot be used: {problem}") from problem
    for name, length in (("sha256", 64), ("phash", 16)):
        wrong = pc.invert(pc.match_substring_regex(table[name], f"^[0-9a-f]{{{length}}}$"))
        if pc.any(wrong).as_py():
            raise ConfigurationError(
                f"{path}: the column {name} holds something else than {length} hexadecimal digits."
            )
    return table


def normalised(text: str) -> str:
    """A prompt as it is compared: small letters and digits, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def is_geneval(text: str) -> bool:
    """Whether a caption is worded as a GenEval prompt."""
    plain = " ".join(text.split()).strip(" .!\"'").removeprefix("Generate an image: ")
    return len(plain) < 160 and GENEVAL.fullmatch(plain) is not None


def _named(items: pa.Table, row: int) -> str:
    return f"{items['benchmark'][row].as_py()} {items['item'][row].as_py()}"
