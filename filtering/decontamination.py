"""Keeps evaluation data out of training data: by hash lists, and by the wording of prompts.

A list is a Parquet file with the columns `benchmark`, `item`, `sha256`, `phash` (16 hexadecimal digits) and `prompt`,
all text, null where an item has none: MSCOCO val, MJHQ-30K, the VQA benchmarks. The evaluation part writes them.
GenEval's prompts are known by their wording (filtering.geneval).

Texts are captions, in every version that is named, and the turns of conversations. A question about a picture is held
out with its picture: the same words about another one are an ordinary question. So the turns of a row with a picture
are compared with the prompts of items that have none, and those of a row of text with all prompts.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from filtering.geneval import is_geneval
from filtering.phash import FARTHEST, GROUP, BandedIndex, numbers
from filtering.rows import ShardRows
from filtering.rules import Check, told
from pipelines.columns import conform, read_columns
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import SOURCE
from pipelines.settings import Settings
from pipelines.storage import file_sha256

LIST_SCHEMA = pa.schema([(name, pa.string()) for name in ("benchmark", "item", "sha256", "phash", "prompt")])

Held = dict[str, str]  # normalised prompt to the item that it belongs to


class Decontamination(Settings):
    """What may not be trained on."""

    lists: tuple[Path, ...] = ()
    """Parquet files of evaluation items."""
    phash_distance: int = Field(default=7, ge=0, le=FARTHEST)
    """Bits of 64 that a training image's hash may differ in from an evaluation image's and still be it."""
    geneval_templates: bool = True
    """Drop captions and turns that are GenEval prompts by their wording."""
    captions: tuple[str, ...] = (SOURCE,)
    """Column groups whose texts are compared with prompts: `source`, which has conversations too, and caption
    versions."""

    @cached_property
    def _items(self) -> pa.Table:
        return pa.concat_tables([read_list(path) for path in self.lists] or [LIST_SCHEMA.empty_table()])

    @property
    def sha256(self) -> list[str]:
        """Of each list, which stand for the lists in step keys."""
        return [file_sha256(path) for path in self.lists if read_list(path) is not None]

    @property
    def needs(self) -> tuple[str, ...]:
        """Column groups that a dataset with images has to have."""
        return (GROUP,) if self._index[0].num_rows else ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Column groups that it reads besides `source`, where they stand."""
        return (*self.needs, *(group for group in self.captions if group != SOURCE))

    def checks(self, rows: ShardRows) -> Iterator[Check]:
        """Checks of images against sha256 and phash, then of captions and turns against prompts and templates."""
        yield from self._images(rows)
        every, alone = self._prompts
        for group in self.captions:
            if group != SOURCE and not rows.has(group):
                continue
            texts = rows.values(group, "caption" if group == SOURCE else "text")
            yield from self._texts([[text] if text else [] for text in texts], [every] * len(texts))
            if group == SOURCE:
                held = [alone if picture else every for picture in rows.pictures.tolist()]
                yield from self._texts(_turns(rows), held)

    def _texts(self, texts: list[list[str]], held: list[Held]) -> Iterator[Check]:
        """Checks of the texts of each row against the prompts that it is `held` against, and templates."""
        prompts = [_first(text, own) if own and text else None for text, own in zip(texts, held, strict=True)]
        yield _check("evaluation_prompt", prompts, "the prompt of ")
        if self.geneval_templates:
            yield _check("geneval_template", [next(filter(is_geneval, text), None) for text in texts], "")

    def _images(self, rows: ShardRows) -> Iterator[Check]:
        items, pictures = self._items, rows.pictures
        if not pictures.any():
            return  # a dataset of text has no hashes
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
    def _prompts(self) -> tuple[Held, Held]:
        """All prompts, and those of items without a picture."""
        rows = self._items.filter(pc.is_valid(self._items["prompt"])).to_pylist()
        named = [(normalised(row["prompt"]), f"{row['benchmark']} {row['item']}", row) for row in rows]
        every = {prompt: name for prompt, name, _ in named}
        return every, {prompt: name for prompt, name, row in named if not (row["sha256"] or row["phash"])}


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


def _turns(rows: ShardRows) -> list[list[str]]:
    """Texts of each row's conversation, without the mark of a picture. Of a turn of several lines the first stands for
    itself, too: a benchmark's question is often followed by how to answer."""
    found = []
    for turns in rows.values(SOURCE, "conversations"):
        texts = [(turn["text"] or "").replace("<image>", " ").strip() for turn in turns or ()]
        found.append(list(dict.fromkeys(one for text in texts for one in (text, text.partition("\n")[0]) if one)))
    return found


def _first(texts: list[str], held: Held) -> str | None:
    return next((name for text in texts if (name := held.get(normalised(text)))), None)


def _check(reason: str, found: list[str | None], before: str) -> Check:
    return Check(reason, np.array([one is not None for one in found], dtype=bool), told(before, found))


def _named(items: pa.Table, row: int) -> str:
    return f"{items['benchmark'][row].as_py()} {items['item'][row].as_py()}"
