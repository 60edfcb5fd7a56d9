"""The rewriting step: every row accounted for, named by what computed it, and never asked twice."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipelines.audit import audit
from pipelines.dataset import Dataset
from recaption.language_model import LanguageModel, language_model
from recaption.prompt import load_prompt
from recaption.rewrite import Rewrite, rewrite_captions
from tests.parts import need
from tests.recaption.captioned import DENSE, QWEN, ROWS, SHARDS, FirstSentence, write_scenes

MODEL = LanguageModel(Path("nowhere"), "firstsentence", "0" * 64)
REWRITE = Rewrite(load_prompt("rewrite-v1"), MODEL)


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return write_scenes(tmp_path / "scenes")


def test_every_row_has_a_caption_or_a_reason(scenes: Dataset) -> None:
    engine = FirstSentence()
    commit = rewrite_captions(scenes, REWRITE, lambda: nullcontext(engine))
    rows = scenes.whole_table(REWRITE.group).to_pylist()
    assert len(rows) == SHARDS * ROWS
    assert Counter(row["reason"] for row in rows) == {None: DENSE, "not_dense": 2 * SHARDS, "no_caption": SHARDS}
    assert all((row["text"] is None) == (row["status"] == "failed") for row in rows)
    assert (commit.rows_in, commit.rows_out) == (SHARDS * ROWS, DENSE)
    assert dict(commit.failed) == {"not_dense": 2 * SHARDS, "no_caption": SHARDS}
    assert len(engine.asked) == DENSE


def test_captions_stand_beside_the_rows_they_were_made_from(scenes: Dataset) -> None:
    rewrite_captions(scenes, REWRITE, lambda: nullcontext(FirstSentence()))
    dense = scenes.whole_table("source").column("caption").to_pylist()
    short = scenes.whole_table(REWRITE.group).column("text").to_pylist()
    assert all(old.startswith(new.rstrip(".")) for old, new in zip(dense, short, strict=True) if new)


def test_the_dataset_stays_sound(scenes: Dataset) -> None:
    rewrite_captions(scenes, REWRITE, lambda: nullcontext(FirstSentence()))
    assert audit(scenes, deep=True).sound


def test_a_second_run_opens_no_engine(scenes: Dataset) -> None:
    first = rewrite_captions(scenes, REWRITE, lambda: nullcontext(FirstSentence()))
    assert rewrite_captions(scenes, REWRITE, lambda: pytest.fail("nothing is left to ask")) == first


def test_batches_that_were_answered_before_a_crash_are_not_asked_again(tmp_path: Path) -> None:
    whole, broken = write_scenes(tmp_path / "a/scenes"), write_scenes(tmp_path / "b/scenes")
    undisturbed = FirstSentence()
    rewrite_captions(whole, REWRITE, lambda: nullcontext(undisturbed))
    before, after = FirstSentence(dies_after=4), FirstSentence()
    with pytest.raises(ConnectionError):
        rewrite_captions(broken, REWRITE, lambda: nullcontext(before))
    rewrite_captions(broken, REWRITE, lambda: nullcontext(after))
    assert before.asked + after.asked == undisturbed.asked
    assert len(before.asked) == 17 + 8  # the first shard's three batches and one of the second's
    assert broken.head and whole.head
    assert broken.head.content_hash == whole.head.content_hash


def test_an_answer_that_fails_a_check_is_a_failed_row_with_that_reason(scenes: Dataset) -> None:
    text = load_prompt("rewrite-v1").model_dump()
    strict = load_prompt("rewrite-v1").model_validate(text | {"checks": text["checks"] | {"words_at_most": 3}})
    rewrite = Rewrite(strict, MODEL)
    rewrite_captions(scenes, rewrite, lambda: nullcontext(FirstSentence()))
    rows = [row for row in scenes.whole_table(rewrite.group).to_pylist() if row["reason"] == "over_long"]
    assert rows
    assert all(row["text"] is None and row["checks"] == ["over_long"] for row in rows)


def test_the_group_names_prompt_model_and_configuration() -> None:
    prompt, model, digest = REWRITE.group.removeprefix("caption.").rsplit("-", 2)
    assert (prompt, model) == ("rewrite-v1", "firstsentence")
    other = Rewrite(REWRITE.prompt, LanguageModel(Path("nowhere"), "firstsentence", "1" * 64))
    assert other.group != REWRITE.group
    assert len(digest) == 8


def test_telemetry_is_outside_the_content_hash(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        dataset = write_scenes(tmp_path / name / "scenes")
        hashes.append(rewrite_captions(dataset, REWRITE, lambda: nullcontext(FirstSentence())).content_hash)
        assert f"{REWRITE.group}.telemetry" in dataset.groups()
    assert hashes[0] == hashes[1]


def test_a_model_is_known_by_its_files_and_not_by_its_path(tmp_path: Path) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    here, moved = language_model(QWEN), shutil.copytree(QWEN, tmp_path / "moved")
    assert language_model(moved, "Tiny Qwen-2.5!").identity() == here.identity()
    assert language_model(moved, "Tiny Qwen-2.5!").name == "tinyqwen2.5"
    template = json.loads((moved / "tokenizer_config.json").read_text())
    (moved / "tokenizer_config.json").write_text(json.dumps(template | {"model_max_length": 7}))
    assert language_model(moved).sha256 != here.sha256
