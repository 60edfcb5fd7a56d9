"""Several sources in one selection: rules of some of them, quotas, text beside pictures, and the documented recipe."""

import re
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from filtering.cut import Take
from filtering.decontamination import LIST_SCHEMA, Decontamination
from filtering.duplicates import Duplicates, mark_duplicates
from filtering.geometry import Geometry
from filtering.grammar import parse_condition
from filtering.phash import digits, write_hashes
from filtering.plan import plan
from filtering.recipe import FilterRecipe, make_columns
from filtering.rows import ShardRows
from filtering.rules import Captions, HashList, Threshold
from filtering.select import select, select_step
from filtering.selection import Selection
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.settings import parse
from tests.filtering.pictured import Row, tiny_clip, write_captions, write_column, write_rows, write_scores
from tests.parts import need

OPEN = Geometry(min_side=1)
DOCUMENT = Path(__file__).parents[2] / "docs/filtering.md"


def scored(root: Path, scores: list[float]) -> Dataset:
    """A dataset named after the folder, of one shard, with these scores in the group `score.toy`."""
    rows = [Row(f"{root.name} {n}", n, data=f"{root.name} {n}".encode()) for n in range(len(scores))]
    dataset = write_rows(root, rows)
    write_scores(dataset, "score.toy", scores)
    return dataset


def test_a_rule_of_some_sources_leaves_the_others_alone_which_need_none_of_its_columns(tmp_path: Path) -> None:
    scores, bare = (
        scored(tmp_path / "rated", [0.1, 0.9, 0.5, 0.95, 0.2]),
        write_rows(tmp_path / "bare", [Row("a"), Row("b", 1)]),
    )
    threshold = Threshold(group="score.toy", column="score", at_most=0.8)
    with pytest.raises(ConfigurationError, match=r"bare has images but no column group 'score\.toy' .*`sources`"):
        plan([scores, bare], Selection(geometry=OPEN, thresholds=(threshold,)))
    mine = threshold.model_copy(update={"sources": ("rated",)})
    taken = Take(group="score.toy", column="score", sources=("rated",), keep=2)
    made = plan([scores, bare], Selection(geometry=OPEN, thresholds=(mine,), take=taken))
    assert made.kept_by_source == {"rated": 2, "bare": 2}
    assert made.counts["high_score"] == 2
    captions = Captions(min_characters=10_000, sources=("bare",))
    assert plan([scores, bare], Selection(geometry=OPEN, captions=captions)).kept_by_source == {"rated": 5}


@pytest.mark.parametrize(
    "rules",
    [
        {"thresholds": ({"group": "score.toy", "column": "score", "at_most": 1, "sources": ("ratd",)},)},
        {"take": {"group": "score.toy", "column": "score", "quotas": {"ratd": 3}}},
    ],
)
def test_a_source_that_no_row_comes_from_is_refused_with_the_nearest_name(
    tmp_path: Path, rules: dict[str, object]
) -> None:
    dataset = scored(tmp_path / "rated", [0.1, 0.9, 0.5, 0.95, 0.2])
    with pytest.raises(ConfigurationError, match="'ratd'; did you mean 'rated'"):
        plan([dataset], Selection.model_validate({"geometry": OPEN, **rules}))


def test_quotas_are_a_part_of_what_is_kept(tmp_path: Path) -> None:
    one, two = scored(tmp_path / "one", [1, 2, 3, 4, 5]), scored(tmp_path / "two", [6, 7, 8, 9, 10])
    take = Take(group="score.toy", column="score", keep=6, quotas={"one": 2})
    made = plan([one, two], Selection(geometry=OPEN, take=take))
    assert made.kept_by_source == {"one": 2, "two": 4}
    assert made.short == {}
    with pytest.raises(ConfigurationError, match="quotas take 7 pictures, and 6 are to be kept"):
        plan([one, two], Selection(geometry=OPEN, take=take.model_copy(update={"quotas": {"one": 7}})))
    with pytest.raises(ValueError, match="quotas of one"):
        Take(group="a", column="b", sources=("two",), quotas={"one": 1})


def test_a_source_with_fewer_pictures_than_its_quota_is_named_in_output_and_commit(tmp_path: Path) -> None:
    one, two = scored(tmp_path / "one", [1, 2, 3, 4, 5]), scored(tmp_path / "two", [6, 7, 8, 9, 10])
    take = Take(group="score.toy", column="score", keep=9, quotas={"one": 7})
    rules = Selection(geometry=OPEN, take=take)
    made = plan([one, two], rules)
    assert made.kept_by_source == {"one": 5, "two": 4}
    assert "  short: one had 5 of the 7 pictures asked for" in made.lines()
    commit = select([one, two], Dataset(tmp_path / "target"), rules)
    assert commit.context["short"] == {"one": [5, 7]}


def test_what_a_hash_list_or_a_condition_reads_is_in_the_step_key(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(f"pdq:{'0' * 64}\n")
    rules = Selection(geometry=OPEN, hash_lists=(HashList(file=tmp_path / "bad.txt"),))
    keys = set()
    for name, digit in (("one", "0"), ("two", "f")):
        dataset = write_rows(tmp_path / name / "toys", [Row("a"), Row("b", 1)])
        write_column(dataset, "pdq", "pdq", pa.array([digit * 64, "f" * 64]))
        keys.add(select_step([dataset], rules).key)
        assert plan([dataset], rules).counts["listed"] == (digit == "0")
    assert len(keys) == 2
    with pytest.raises(ConfigurationError, match="no column group 'pdq' for a rule"):
        plan([write_rows(tmp_path / "bare", [Row("a")])], rules)


def test_a_dataset_of_text_stands_beside_pictures_under_every_rule(tmp_path: Path) -> None:
    pictures = scored(tmp_path / "pictures", [1, 2, 3, 4, 5])
    words = write_rows(tmp_path / "words", [Row("x", text=True), Row("y", text=True, turn="Good day")])
    write_hashes(pictures)
    items = [{"benchmark": "toy", "item": "1", "phash": digits(5)}]
    pq.write_table(pa.Table.from_pylist(items, LIST_SCHEMA), tmp_path / "list.parquet")
    mark_duplicates([pictures, words], Duplicates())
    rules = Selection(
        geometry=OPEN,
        thresholds=(Threshold(group="score.toy", column="score", at_least=2),),
        where="score > 2 and ratio < 3 and caption_length > 3",
        decontaminate=Decontamination(lists=(tmp_path / "list.parquet",)),
        prefer=("score", "pixels"),
        take=Take(group="score", column="score", keep=2),
    )
    target = Dataset(tmp_path / "target")
    select([pictures, words], target, rules)
    kept = target.whole_table("source")["row_id"].to_pylist()
    assert sorted(kept) == ["pictures 3", "pictures 4", "x", "y"]
    assert audit(target, deep=True).sound


@pytest.mark.parametrize(
    ("condition", "stays"),
    [
        ("score > 2", True),
        ("not score > 2", True),
        ("ratio < 2 and task == 'text'", True),
        ("ratio < 2 and task == 'text2image'", False),
        ("ratio < 2 or task == 'text'", True),
        ("not (ratio < 2 and task == 'text')", True),
        ("not (ratio < 2 or task == 'text')", False),
        ("caption_length > 10", True),
        ("row_id == 'y'", False),
        ("ext in ('jpg', 'png')", True),
    ],
)
def test_a_condition_says_nothing_of_what_a_text_does_not_have(tmp_path: Path, condition: str, stays: bool) -> None:
    words = write_rows(tmp_path / "words", [Row("x", text=True)])
    assert parse_condition(condition).mask(ShardRows(words, 0)).tolist() == [stays]


@pytest.mark.parametrize(("number", "kind"), [(0.8, np.float32), (0.1, np.float32), (0.1, np.float16), (3, np.int32)])
def test_a_bound_is_rounded_as_the_numbers_are(tmp_path: Path, number: float, kind: type[np.generic]) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a")])
    write_column(dataset, "score.toy", "score", pa.array(np.array([number], kind)))
    for bound in ("at_least", "at_most"):
        threshold = Threshold.model_validate({"group": "score.toy", "column": "score", bound: number})
        assert plan([dataset], Selection(geometry=OPEN, thresholds=(threshold,))).kept == 1
    for sign in ("==", "<=", ">="):
        assert plan([dataset], Selection(geometry=OPEN, where=f"score {sign} {number}")).kept == 1
        assert plan([dataset], Selection(geometry=OPEN, where=f"{number} {sign} score")).kept == 1


def test_the_documented_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in docs/filtering.md, but for the network and how many: a small CLIP in this process."""
    import importlib.util

    for package in ("py3langid", "faiss"):
        need(importlib.util.find_spec(package) is not None, f"{package} is not installed; run `make env`")
    monkeypatch.chdir(tmp_path)
    text = re.search(r"\n    columns:\n.*?\n(?=\n|- )", DOCUMENT.read_text(), re.DOTALL)
    assert text
    told = yaml.safe_load(textwrap.dedent(text[0]))
    parse(FilterRecipe, told, "as it stands")
    (tmp_path / "weights").mkdir()
    told["columns"]["embed"] |= {"clip": tiny_clip(tmp_path), "architecture": "tiny-stand-in", "device": "cpu"}
    told["columns"]["embed"] |= {"precision": "float32", "actors": None, "gpus": 0}
    save_file({"weight": torch.randn(1, 768), "bias": torch.full((1,), 6.0)}, tmp_path / "weights/head.safetensors")
    told["columns"]["embed"]["heads"] = ["weights/head.safetensors"]
    told["selection"]["take"]["quotas"]["pd12m"] = 1
    told["duplicates"]["phash_distance"] = 2  # scenes of one kind look much alike
    told["duplicates"]["cosine"] = 1.0
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "known-bad.txt").write_text(f"{'0' * 64}\n")
    for name in ("coco-val", "mjhq"):
        items = [{"benchmark": name, "item": "1", "phash": "0" * 16, "sha256": "1" * 64, "prompt": "a prompt"}]
        pq.write_table(pa.Table.from_pylist(items, LIST_SCHEMA), lists / f"{name}.parquet")
    marks = {"uid": [f"r{n}" for n in range(10)], "watermark": [0.9 if n == 3 else 0.1 for n in range(10)]}
    pq.write_table(pa.table(marks), lists / "pixelprose.parquet")
    datasets = [
        write_rows(tmp_path / name, [Row(f"r{n}", first + n, (520, 520)) for n in range(10)])
        for name, first in (("pd12m", 0), ("pixelprose", 100))
    ]
    datasets.append(write_rows(tmp_path / "words", [Row("w", text=True)]))
    for dataset in datasets:
        write_captions(dataset, "caption.rewrite-v1-qwen2.5-7b-12345678")
    recipe = parse(FilterRecipe, told, "the documented recipe")
    make_columns(recipe, datasets)
    target = Dataset(tmp_path / "stage3")
    commit = select(datasets, target, recipe.filled(datasets))
    assert "shipped.pixelprose" not in datasets[0].groups()
    kept = Counter(target.whole_table("source")["source"].to_pylist())
    passing = 20 - sum(number for reason, number in commit.rejected.items() if reason != "below_cut")
    assert kept == {"pd12m": 1, "pixelprose": round(passing / 5) - 1, "words": 1}
    assert commit.rejected["high_shipped"] == 1
    assert audit(target, deep=True).sound
