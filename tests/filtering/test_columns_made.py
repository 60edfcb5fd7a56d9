"""Columns that a filter recipe makes: languages, shipped scores, and shipped embeddings that have to verify."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering.embedding import Clip, embed_images
from filtering.geometry import Geometry
from filtering.language import write_languages
from filtering.plan import plan
from filtering.recipe import Columns, FilterRecipe, load_filter_recipe, make_columns
from filtering.rules import Captions, Threshold
from filtering.selection import Selection
from filtering.shipped import Shipped, verify_embeddings, write_shipped
from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.steps import Reads, Step, StepRun
from tests.filtering.pictured import Row, tiny_clip, write_rows
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
    shipped = Shipped(file=tmp_path / "list.parquet", group="shipped.toys", columns=("watermark",), on="uid")
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


def test_shipped_embeddings_verify_against_the_weights_they_came_from(tmp_path: Path) -> None:
    clip = Clip(tiny_clip(tmp_path), "tiny-stand-in")
    dataset = write_rows(tmp_path / "toys", [Row(f"r{n}", n) for n in range(3)])
    embed_images(dataset, clip)
    vectors = dataset.whole_table(clip.group).column("embedding").to_pylist()
    for name, shift in (("same", 0), ("other", 1)):
        rows = {"row_id": ["r0", "r1", "r2"], "embedding": vectors[shift:] + vectors[:shift]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        write_shipped(dataset, Shipped(file=tmp_path / f"{name}.parquet", group=f"clip.{name}", columns=("embedding",)))
    assert verify_embeddings(dataset, "clip.same", clip) > 0.999
    assert verify_embeddings(dataset, "clip.other", clip) < 0.999


def test_a_wrong_key_of_a_filter_recipe_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("selection: {geometri: {min_side: 3}}\n")
    with pytest.raises(ConfigurationError, match="did you mean 'geometry'"):
        load_filter_recipe(tmp_path / "r.yaml")
