"""Columns that a filter recipe makes: languages, shipped scores, and shipped embeddings that have to verify."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from filtering.aesthetic import load_head
from filtering.cut import Take
from filtering.embedding import Clip, embed_images
from filtering.geometry import Geometry
from filtering.language import write_languages
from filtering.plan import plan
from filtering.recipe import Columns, Embed, FilterRecipe, load_filter_recipe, make_columns
from filtering.rules import Captions, Threshold
from filtering.select import select
from filtering.selection import Selection
from filtering.shipped import Shipped, write_shipped
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.steps import Reads, Step, StepRun
from tests.filtering.pictured import Row, tiny_clip, write_rows, write_scores
from tests.parts import need


def test_a_language_rule_keeps_captions_in_the_asked_languages(tmp_path: Path) -> None:
    import importlib.util

    need(importlib.util.find_spec("py3langid") is not None, "py3langid is not installed; run `make env`")
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("b", 1), Row("words", text=True)])
    texts = ["ein alter Hund schläft neben dem warmen Ofen", "an old dog is sleeping beside the warm stove", None]
    write_texts(dataset, "caption.x", texts)
    commit = write_languages(dataset, "caption.x")
    assert dataset.whole_table("language.caption.x").column("language").to_pylist() == ["de", "en", None]
    assert dict(commit.failed) == {"no_caption": 1}
    rules = Selection(geometry=Geometry(min_side=1), captions=Captions(group="caption.x", languages=("en",)))
    made = plan([dataset], rules)
    assert (made.counts["language"], made.kept) == (1, 2)


def write_texts(dataset: Dataset, group: str, texts: list[str | None]) -> None:
    run = StepRun(dataset, Step("rewrite", 1, {}, (Reads(dataset, ("source",)),)))
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        output.columns(
            group, pa.table({"key": dataset.table("source", shard)["key"], "text": pa.array(texts, pa.string())})
        )
        output.finish(len(texts))
    run.commit()


def test_shipped_scores_become_a_column_and_a_threshold(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("b", 1), Row("c", 2)], 2)
    pq.write_table(pa.table({"uid": ["b", "zzz", "a"], "watermark": [0.9, 0.1, 0.2]}), tmp_path / "list.parquet")
    shipped = Shipped(file=tmp_path / "list.parquet", group="shipped.toys", columns=("watermark",), id="uid")
    recipe = FilterRecipe(
        columns=Columns(shipped=(shipped,), hash=True),
        selection=Selection(
            geometry=Geometry(min_side=1),
            thresholds=(Threshold(group="shipped.toys", column="watermark", at_most=0.5),),
        ),
    )
    make_columns(recipe, [dataset])
    make_columns(recipe, [dataset])  # nothing is left to do
    assert dataset.whole_table("shipped.toys").column("watermark").to_pylist() == pytest.approx([0.2, 0.9, None])
    made = plan([dataset], recipe.filled([dataset]))
    assert made.counts | {"": made.kept} == {
        "": 1,
        "unscored": 1,
        "high_shipped": 1,
        "duplicate_key": 0,
        "duplicate": 0,
    } | {name: 0 for name in made.counts if name not in ("", "unscored", "high_shipped", "duplicate_key", "duplicate")}
    assert audit(dataset).sound


def test_a_file_that_lacks_a_column_or_names_a_sample_twice_is_refused(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a")])
    pq.write_table(pa.table({"row_id": ["a", "a"], "score": [1.0, 2.0]}), tmp_path / "twice.parquet")
    for columns, said in ((("score",), "twice"), (("absent",), "no column absent")):
        with pytest.raises(ConfigurationError, match=said):
            write_shipped(dataset, Shipped(file=tmp_path / "twice.parquet", group="shipped.x", columns=columns))


def shipped_vectors(folder: Path, name: str, vectors: list[list[float]]) -> Shipped:
    rows = {"row_id": [f"r{n}" for n in range(len(vectors))], "embedding": vectors}
    pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return Shipped(file=folder / f"{name}.parquet", group="clip", columns=("embedding",))


def test_shipped_embeddings_are_used_once_they_verify_and_refused_where_they_do_not(tmp_path: Path) -> None:
    clip = Clip(tiny_clip(tmp_path), "tiny-stand-in")
    rows = [Row(f"r{n}", n) for n in range(5)]
    computed = write_rows(tmp_path / "computed" / "toys", rows, 3)
    embed_images(computed, clip)
    vectors = computed.whole_table(clip.group).column("embedding").to_pylist()
    embed = Embed(clip=clip.weights, architecture=clip.architecture, similarity=("source",))
    dataset = write_rows(tmp_path / "toys", rows, 3)
    wrong = Columns(shipped=(shipped_vectors(tmp_path, "wrong", vectors[1:] + vectors[:1]),), embed=embed)
    with pytest.raises(HarmonError, match="are not those of"):
        make_columns(FilterRecipe(columns=wrong), [dataset])
    assert clip.group not in dataset.groups()
    right = Columns(shipped=(shipped_vectors(tmp_path, "right", vectors),), embed=embed)
    commits = make_columns(FilterRecipe(columns=right), [dataset])
    assert [commit.step for commit in commits] == ["shipped", "similarity"]
    assert commits[0].configuration["verified"] == clip.sha256
    assert 0.99 < commits[0].context["lowest_cosine"] < 1.01
    assert dataset.whole_table(clip.group).column("embedding").to_pylist() == vectors
    assert make_columns(FilterRecipe(columns=right), [dataset]) == [commits[1]]
    assert make_columns(FilterRecipe(columns=Columns(embed=embed)), [dataset]) == [commits[1]]
    with pytest.raises(ConfigurationError, match="have to verify"):
        make_columns(FilterRecipe(columns=Columns(shipped=right.shipped)), [dataset])


def test_embeddings_of_other_weights_and_their_scores_stand_beside_the_first(tmp_path: Path) -> None:
    clips, dataset = [], write_rows(tmp_path / "toys", [Row(f"r{n}", n) for n in range(3)])
    save_file({"weight": torch.randn(1, 768), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    for seed, precision in ((0, "float32"), (1, "float32"), (1, "bfloat16")):
        (tmp_path / str(seed)).mkdir(exist_ok=True)
        embed = Embed(
            clip=tiny_clip(tmp_path / str(seed), seed),
            architecture="tiny-stand-in",
            heads=(tmp_path / "head.safetensors",),
            precision=precision,
        )
        make_columns(FilterRecipe(columns=Columns(embed=embed)), [dataset])
        clips.append(embed.model.group)
    scores = [dataset.whole_table(g)["score"].to_pylist() for g in dataset.groups() if g.startswith("aesthetic.")]
    assert len(set(clips)) == 3
    assert len({tuple(one) for one in scores}) == 3
    with pytest.raises(ConfigurationError, match="may be the column group"):
        Selection(thresholds=(Threshold(group="aesthetic", column="score", at_least=0),)).named([dataset])


def test_a_short_name_means_the_one_group_that_begins_so(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("b", 1)])
    write_scores(dataset, "aesthetic.laion-v2-21dd590f.vit", [4.0, 7.0])
    rules = Selection(
        geometry=Geometry(min_side=1),
        thresholds=(Threshold(group="aesthetic", column="score", at_least=5.0),),
        take=Take(group="aesthetic.laion-v2-21dd590f", column="score", keep=1),
    )
    target = Dataset(tmp_path / "target")
    select([dataset], target, rules)
    assert target.whole_table("source")["row_id"].to_pylist() == ["b"]
    assert target.head
    assert target.head.configuration["take"]["group"] == "aesthetic.laion-v2-21dd590f.vit"


def test_a_group_that_was_made_otherwise_is_refused_before_any_work(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a")])
    write_scores(dataset, "hash", [1.0])
    with pytest.raises(ConfigurationError, match="'hash' from other settings"):
        make_columns(FilterRecipe(columns=Columns(header=True, hash=True)), [dataset])
    assert "header" not in dataset.groups()


def test_a_head_for_embeddings_of_another_width_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.randn(1, 768), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ConfigurationError, match="768 numbers"):
        load_head(tmp_path / "head.safetensors").score(np.ones((2, 512)))


def test_a_wrong_key_of_a_filter_recipe_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("selection: {geometri: {min_side: 3}}\n")
    with pytest.raises(ConfigurationError, match="did you mean 'geometry'"):
        load_filter_recipe(tmp_path / "r.yaml")
