"""Planted duplicates and evaluation pictures are found, and hardly anything else is."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filtering.decontamination import LIST_SCHEMA, Decontamination
from filtering.duplicates import Duplicates, duplicates_group, mark_duplicates
from filtering.geneval import OBJECTS, is_geneval
from filtering.geometry import Geometry
from filtering.phash import BandedIndex, digits, numbers, phash, write_hashes
from filtering.plan import plan
from filtering.select import select
from filtering.selection import Selection
from pipelines.audit import audit
from pipelines.canonical import sample_key
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError
from pipelines.steps import Reads, Step, StepRun
from tests.filtering.pictured import Row, write_captions, write_rows
from tests.filtering.planted import Truth, plant, planted_embeddings
from tests.parts import need

TRUTH = {"originals": 700, "exact": 500, "perceptual": 500, "evaluation": 200}
OPEN = Geometry(min_side=1)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def truth() -> Truth:
    return plant(**TRUTH)


@pytest.fixture(scope="module")
def dataset(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [Row(name, data=data, size=(320, 240)) for name, data in truth.pictures.items()]
    written = write_rows(tmp_path_factory.mktemp("data") / "planted", rows, 400)
    write_hashes(written)
    return written


@pytest.fixture(scope="module")
def benchmark_list(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "benchmark": "toy",
            "item": item,
            "sha256": hashlib.sha256(data).hexdigest(),
            "phash": digits(phash(data)),
            "prompt": f"A Picture,  number {item.split()[1]}!",
        }
        for item, data in truth.evaluation.items()
    ]
    path = tmp_path_factory.mktemp("lists") / "toy.parquet"
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), path)
    return path


def left(dataset: Dataset, selection: Selection) -> dict[str, tuple[str, str]]:
    """Row to reason and detail of every row that a selection drops."""
    made, found = plan([dataset], selection), {}
    from filtering.rows import shards_of

    for number, rows in shards_of([dataset]):
        names = rows.values("source", "row_id")
        found |= {names[row]: (drop.reason, drop.detail) for row, drop in made.drops(number, rows).items()}
    return found


def test_every_exact_duplicate_is_found_and_nothing_else(dataset: Dataset, truth: Truth) -> None:
    dropped = left(dataset, Selection(geometry=OPEN))
    assert set(dropped) == set(truth.exact)
    assert dropped["exact 3"] == ("duplicate", f"same bytes as {sample_key('planted', 'original 3')}")


def test_near_duplicates_are_found_with_few_mistakes(dataset: Dataset, truth: Truth) -> None:
    wanted = Duplicates(prefer=())
    (commit,) = mark_duplicates([dataset], wanted)
    assert mark_duplicates([dataset], wanted) == [commit]
    assert audit(dataset).sound
    dropped = left(dataset, Selection(geometry=OPEN, duplicates=duplicates_group([dataset], wanted)))
    near = {name for name, (reason, _) in dropped.items() if reason == "near_duplicate"}
    assert len(near & set(truth.perceptual)) / len(truth.perceptual) >= 0.97
    innocent = set(truth.pictures) - set(truth.perceptual) - set(truth.exact)
    assert len(near & innocent) / len(innocent) <= 0.001


def test_every_evaluation_picture_is_found_with_few_mistakes(
    dataset: Dataset, truth: Truth, benchmark_list: Path
) -> None:
    dropped = left(dataset, Selection(geometry=OPEN, decontaminate=Decontamination(lists=(benchmark_list,))))
    evaluation = {name for name, (reason, _) in dropped.items() if reason == "evaluation_image"}
    assert truth.contaminated <= evaluation
    assert len(evaluation - truth.contaminated) / len(truth.pictures) <= 0.001
    assert dropped["leaked 1"][1] == "toy item 1"
    assert dropped["leaked 2"][1] == "looks like toy item 2"


def test_semantic_duplicates_are_found_among_random_vectors(tmp_path: Path) -> None:
    need_faiss()
    count, planted = (100_000, 1_000) if os.environ.get("HARMON_SOAK") else (30_000, 300)
    dataset = write_vectors(tmp_path / "vectors", planted_embeddings(count, planted, 0.97), 25_000)
    wanted = Duplicates(phash_distance=None, embeddings="clip.toy-float32", cosine=0.95, prefer=())
    mark_duplicates([dataset], wanted)
    groups = dataset.whole_table(duplicates_group([dataset], wanted)).column("group").to_pylist()
    keys = dataset.whole_table("source", ["key"]).column("key").to_pylist()
    assert np.mean([groups[count + n] == keys[n] for n in range(planted)]) >= 0.95
    assert sum(one is not None for one in groups[planted:count]) / (count - planted) <= 0.001


def need_faiss() -> None:
    import importlib.util

    need(importlib.util.find_spec("faiss") is not None, "faiss-cpu is not installed; run `make env`")


def write_vectors(root: Path, vectors: np.ndarray, rows_per_shard: int) -> Dataset:
    """Text rows with an embedding each: no pictures are needed to compare vectors."""
    dataset = Dataset(root)
    run = StepRun(dataset, Step("download", 1, {}))
    keys = [sample_key("vectors", str(n)) for n in range(len(vectors))]
    shards = -(-len(keys) // rows_per_shard)
    for shard in run.pending(range(shards)):
        output = run.shard(shard)
        own = keys[shard * rows_per_shard : (shard + 1) * rows_per_shard]
        rows = [{"key": key, "source": "vectors", "row_id": key, "task": "text"} for key in own]
        output.columns("source", pa.Table.from_pylist(rows, SOURCE_SCHEMA))
        output.finish(len(own))
    run.commit()
    write_embeddings(dataset, vectors, rows_per_shard)
    return dataset


def write_embeddings(dataset: Dataset, vectors: np.ndarray, rows_per_shard: int) -> None:
    """The group `clip.toy-float32`."""
    keys = dataset.whole_table("source", ["key"]).column("key").to_pylist()
    embed = StepRun(dataset, Step("embed", 1, {}, (Reads(dataset, ("source",)),)))
    for shard in embed.pending(dataset.shard_numbers):
        output = embed.shard(shard)
        part = slice(shard * rows_per_shard, (shard + 1) * rows_per_shard)
        halves = pa.FixedSizeListArray.from_arrays(vectors[part].astype(np.float16).reshape(-1), vectors.shape[1])
        table = {"key": keys[part], "embedding": halves.cast(pa.list_(pa.float16()))}
        output.columns("clip.toy-float32", pa.table(table))
        output.finish(len(keys[part]))
    embed.commit()


def test_the_best_row_of_a_group_stays_and_a_dropped_best_row_makes_room(tmp_path: Path) -> None:
    dataset = write_rows(
        tmp_path / "toys", [Row("small", 1, (128, 128)), Row("large", 1, (512, 512)), Row("mid", 1, (256, 256))]
    )
    write_hashes(dataset)
    wanted = Duplicates(prefer=("pixels",))
    mark_duplicates([dataset], wanted)
    rules = Selection(geometry=OPEN, duplicates=duplicates_group([dataset], wanted), prefer=("pixels",))
    assert set(left(dataset, rules)) == {"small", "mid"}
    assert set(left(dataset, rules.model_copy(update={"prefer": ("caption_length",)}))) == {"large", "mid"}
    limited = rules.model_copy(update={"geometry": Geometry(min_side=1, max_pixels=300 * 300)})
    assert set(left(dataset, limited)) == {"small", "large"}


def test_groups_span_datasets(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one", [Row("a", 1, (200, 200)), Row("b", 2)])
    two = write_rows(tmp_path / "two", [Row("c", 1, (256, 256)), Row("d", 3)])
    for dataset in (one, two):
        write_hashes(dataset)
    wanted = Duplicates()
    mark_duplicates([one, two], wanted)
    group = duplicates_group([one, two], wanted)
    key = sample_key("two", "c")
    assert one.whole_table(group).column("group").to_pylist()[0] == key
    assert two.whole_table(group).column("kind").to_pylist()[0] == "centre"
    target = Dataset(tmp_path / "target")
    select([one, two], target, Selection(geometry=OPEN, duplicates=group, prefer=("pixels",)))
    assert {row["row_id"]: row["detail"] for row in target.rejects().to_pylist()}["a"] == f"much like {key}"


def test_a_group_of_duplicates_that_nobody_marked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="of near duplicates"):
        plan([write_rows(tmp_path / "toys", [Row("a")])], Selection(duplicates="duplicates.00000000"))
    with pytest.raises(ConfigurationError, match="holds texts"):
        plan([write_rows(tmp_path / "twins", [Row("a"), Row("b")])], Selection(geometry=OPEN, prefer=("caption",)))


def test_a_missing_hash_group_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no column group 'hash'"):
        mark_duplicates([write_rows(tmp_path / "toys", [Row("a")])], Duplicates())


def test_a_group_by_looks_is_a_star_and_never_a_chain(tmp_path: Path) -> None:
    """Each hash is 8 bits from the one before; the second row is the best."""
    hashes = [(1 << 8 * n) - 1 for n in range(4)]
    dataset = write_hashed(tmp_path / "toys", hashes, widths=[300, 400, 200, 100])
    wanted = Duplicates(phash_distance=8, prefer=("pixels",))
    mark_duplicates([dataset], wanted)
    rows = dataset.whole_table(duplicates_group([dataset], wanted)).to_pylist()
    keys = [row["key"] for row in rows]
    assert [row["group"] for row in rows] == [keys[1], keys[1], keys[1], None]
    assert [(row["kind"], row["distance"]) for row in rows[:3]] == [("phash", 8), ("centre", 0), ("phash", 8)]


def write_hashed(root: Path, hashes: Sequence[int], widths: Sequence[int] | None = None) -> Dataset:
    """Rows with a given hash, twice as wide as high, without pictures: near duplicates are marked from columns."""
    dataset, keys = Dataset(root), [sample_key(root.name, str(n)) for n in range(len(hashes))]
    run = StepRun(dataset, Step("download", 1, {}))
    for _ in run.pending([0]):
        output, sides = run.shard(0), widths or [200] * len(keys)
        known = {"key": keys, "width": sides, "height": [side // 2 for side in sides]}
        known |= {"source": [root.name] * len(keys), "row_id": keys, "task": ["text2image"] * len(keys)}
        columns = [known.get(field.name, pa.nulls(len(keys), field.type)) for field in SOURCE_SCHEMA]
        output.columns("source", pa.table(columns, schema=SOURCE_SCHEMA))
        output.finish(len(keys))
    run.commit()
    run = StepRun(dataset, Step("hash", 1, {}, (Reads(dataset, ("source",)),)))
    for _ in run.pending([0]):
        output = run.shard(0)
        output.columns("hash", pa.table({"key": keys, "phash": [digits(value) for value in hashes]}))
        output.finish(len(keys))
    run.commit()
    return dataset


def test_a_group_by_meaning_is_a_star_and_never_a_chain_and_takes_those_along_that_look_alike(tmp_path: Path) -> None:
    """Vectors at steps of 14 degrees, of which neighbours have a cosine of 0.97; the last looks like the third."""
    need_faiss()
    angles = np.deg2rad([0, 14, 28, 42, 90])
    vectors = np.zeros((5, 768), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    dataset = write_hashed(tmp_path / "toys", [0, 2**16 - 1, 2**32 - 1, 2**48 - 1, 2**32 - 2], [100, 200, 90, 80, 70])
    write_embeddings(dataset, vectors, 5)
    wanted = Duplicates(phash_distance=2, embeddings="clip.toy-float32", cosine=0.95, prefer=("pixels",))
    mark_duplicates([dataset], wanted)
    rows = dataset.whole_table(duplicates_group([dataset], wanted)).to_pylist()
    keys = [row["key"] for row in rows]
    assert [row["group"] for row in rows] == [keys[1], keys[1], keys[1], None, keys[1]]
    assert [row["kind"] for row in rows] == ["semantic", "centre", "semantic", None, "phash"]


def greedy(near: np.ndarray) -> list[int]:
    """The centre of each row, -1 for one alone: the rule itself. `near` [rows, rows], the best row first."""
    centre = np.full(len(near), -1)
    for row in range(len(near)):
        if centre[row] < 0:
            joining = (centre < 0) & near[row] & (np.arange(len(near)) > row)
            centre[joining] = row
    centre[centre[centre >= 0]] = centre[centre >= 0]
    return centre.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_each_row_joins_the_best_centre_beside_it_however_few_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    need_faiss()
    for name, value in (("likeness.WINDOW", 11), ("likeness.LOOKED_AT", 3000), ("phash.AT_ONCE", 5)):
        monkeypatch.setattr(f"filtering.{name}", value)
    for name, value in (("BLOCK", 7), ("CHUNK", 3), ("MOST_CLUSTERS", 1)):
        monkeypatch.setattr(f"filtering.meaning.{name}", value)
    draw, rows = np.random.default_rng(seed), 60
    hashes = [sum(1 << int(bit) for bit in draw.choice(12, 6, replace=False)) for _ in range(rows)]
    vectors = draw.standard_normal((rows, 3)).astype(np.float16).astype(np.float32)
    dataset = write_hashed(tmp_path / "toys", hashes)
    write_embeddings(dataset, vectors, rows)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    bits = np.bitwise_count(np.array(hashes, np.uint64)[:, None] ^ np.array(hashes, np.uint64))
    ways = [(Duplicates(phash_distance=3, prefer=()), bits <= 3)]
    ways += [(Duplicates(phash_distance=None, embeddings="clip.toy-float32", prefer=()), units @ units.T >= 0.95)]
    keys = dataset.whole_table("source")["key"].to_pylist()
    for wanted, near in ways:
        mark_duplicates([dataset], wanted)
        groups = dataset.whole_table(duplicates_group([dataset], wanted))["group"].to_pylist()
        assert groups == [keys[centre] if centre >= 0 else None for centre in greedy(near)]


CLIQUE = """
import sys
from benchmarks.memory import peak_memory
import faiss
from filtering.duplicates import Duplicates, duplicates_group, mark_duplicates
from pipelines.dataset import Dataset
dataset, before = Dataset(sys.argv[1]), peak_memory()
embeddings = sys.argv[2] or None
wanted = Duplicates(phash_distance=None if embeddings else 10, embeddings=embeddings, prefer=())
mark_duplicates([dataset], wanted)
groups = dataset.whole_table(duplicates_group([dataset], wanted)).column("group")
print(groups.null_count, len(groups.unique().drop_null()), (peak_memory() - before) / 2**20)
"""


@pytest.mark.parametrize("by", ["looks", "meaning"])
def test_tens_of_thousands_of_copies_of_a_picture_need_little_memory(tmp_path: Path, by: str) -> None:
    """30,000 rows near one picture, each pair of which is a pair of near duplicates: 450 million pairs."""
    draw, copies = np.random.default_rng(0), 30_000
    if by == "looks":
        flipped = draw.integers(0, 64, (copies, 2))  # half of the copies are equal, the others 1 to 4 bits apart
        hashes = [0x1234567812345678 ^ (1 << a | 1 << b if n % 2 else 0) for n, (a, b) in enumerate(flipped.tolist())]
        dataset = write_hashed(tmp_path / "toys", hashes)
    else:
        need_faiss()
        vectors = np.ones((copies, 64), np.float32) + 0.01 * draw.standard_normal((copies, 64), np.float32)
        vectors[::2] = 1.0
        dataset = write_vectors(tmp_path / "toys", vectors, copies)
    command = [sys.executable, "-c", CLIQUE, str(dataset.root), "" if by == "looks" else "clip.toy-float32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    alone, groups, mebibytes = (float(one) for one in done.stdout.split())
    print(f"{mebibytes:.0f} MiB above the imports")
    assert alone + groups <= (1 if by == "looks" else copies / 1000)  # clusters part a few of them
    assert mebibytes <= 400


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.integers(0, 11), st.randoms(use_true_random=False)
)
def test_the_banded_lookup_finds_exactly_the_pairs_within_the_distance(
    values: list[int], distance: int, random: object
) -> None:
    flipped = []
    for value in values:
        for bit in random.sample(range(64), random.randint(0, 14)):  # type: ignore[attr-defined]
            value ^= 1 << bit
        flipped.append(value)
    hashes, queries = np.array(values, np.uint64), np.array(flipped, np.uint64)
    found = {pair for who, whom in BandedIndex(hashes).pairs(queries, distance) for pair in zip(who, whom, strict=True)}
    assert found == {
        (who, whom)
        for who, one in enumerate(flipped)
        for whom, other in enumerate(values)
        if (one ^ other).bit_count() <= distance
    }


def test_a_hash_is_written_with_sixteen_digits_and_read_back() -> None:
    assert numbers([digits(1), None, digits(2**64 - 1)]).tolist() == [1, 0, 2**64 - 1]


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a bench",
        "A photo of an orange.",
        "a photo of a computer keyboard",
        "a photo of two clocks",
        "a photo of four baseball gloves",
        "a photo of a red cake",
        "a photo of a toaster and an elephant",
        "a photo of a dog right of a tennis racket",
        "a photo of a carrot left of an orange",
        "Generate an image: a photo of a purple wine glass and a black apple",
        "a photo of three knifes",
        "a photo of two benches",
        "a photo of a computer mouse and a tv remote",
        "a photo of an orange cow and a purple sandwich",
        '"A photo of a hair drier."',
    ],
)
def test_geneval_prompts_are_known_by_their_wording(caption: str) -> None:
    assert is_geneval(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of a dog running along the beach at dusk while the waves come in",
        "a photo of seven dogs",
        "photo of a dog",
        "a painting of a dog",
        "",
        "a photo of a man, smiling",
        "a photo of a dog on a beach",
        "a photo of a cat in a box",
        "a photo of a little girl",
        "a photo of a beautiful sunset",
        "a photo of a big dog",
        "a photo of two women",
        "a photo of two people",
        "a photo of a wooden chair and a table",
        "a photo of a bird above the sea",
        "a photo of a red house",
    ],
)
def test_other_captions_are_no_geneval_prompts(caption: str) -> None:
    assert not is_geneval(caption)


def test_every_object_of_geneval_is_known() -> None:
    assert len(set(OBJECTS)) == 80
    for name in OBJECTS:
        article = "an" if name[0] in "aeiou" else "a"
        assert is_geneval(f"a photo of {article} {name}")
        assert is_geneval(f"a photo of two {name}{'es' if name.endswith('s') else 's'}")  # as GenEval makes plurals
        assert is_geneval(f"a photo of a green {name} and {article} {name}")


def test_conversations_are_decontaminated_and_a_question_about_another_picture_is_not(tmp_path: Path) -> None:
    said = {
        "geneval": "Generate an image: a photo of a red bench",
        "prompt": "What is the capital\nof France?",
        "question": "How many dogs are there?",
        "harmless": "Hello",
        "vqa": "<image>\nHow many dogs are there?",
        "vqa prompt": "<image>\nWhat is the capital of France?\nAnswer the question using a single word or phrase.",
    }
    items = [
        {"benchmark": "toy", "item": "1", "prompt": "what is the capital of France"},
        {"benchmark": "vqa", "item": "2", "prompt": "How many dogs are there?", "sha256": "0" * 64},
    ]
    pq.write_table(pa.Table.from_pylist(items, LIST_SCHEMA), tmp_path / "list.parquet")
    rows = [Row(name, n, text="vqa" not in name, turn=turn) for n, (name, turn) in enumerate(said.items())]
    dataset = write_rows(tmp_path / "toys", rows)
    rules = Selection(geometry=OPEN, decontaminate=Decontamination(lists=(tmp_path / "list.parquet",)))
    assert left(dataset, rules) == {
        "geneval": ("geneval_template", said["geneval"]),
        "prompt": ("evaluation_prompt", "the prompt of toy 1"),
        "question": ("evaluation_prompt", "the prompt of vqa 2"),
        "vqa prompt": ("evaluation_prompt", "the prompt of toy 1"),
    }


def test_captions_are_compared_with_prompts_in_every_named_version(tmp_path: Path, benchmark_list: Path) -> None:
    dataset = write_rows(tmp_path / "toys", [Row("a"), Row("b", 1)])
    write_captions(dataset, "caption.x")
    write_hashes(dataset)
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist([{"benchmark": "toy", "item": "1", "prompt": "About B."}], LIST_SCHEMA), path)
    rules = Selection(geometry=OPEN, decontaminate=Decontamination(lists=(path,), captions=("source", "caption.x")))
    assert left(dataset, rules) == {"b": ("evaluation_prompt", "the prompt of toy 1")}


def test_a_list_with_other_columns_or_digits_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"benchmark": ["a"]}), tmp_path / "columns.parquet")
    bad = pa.Table.from_pylist([{"benchmark": "a", "item": "1", "phash": "XYZ"}], LIST_SCHEMA)
    pq.write_table(bad, tmp_path / "digits.parquet")
    dataset = write_rows(tmp_path / "toys", [Row("a")])
    for name in ("columns", "digits", "absent"):
        rules = Selection(decontaminate=Decontamination(lists=(tmp_path / f"{name}.parquet",)))
        with pytest.raises(ConfigurationError, match=name):
            plan([dataset], rules)
