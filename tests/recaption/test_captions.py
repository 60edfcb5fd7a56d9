"""The captioning step: every row accounted for, named by what computed it, and never asked twice."""

import base64
import io
import json
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.manifest import Commit
from recaption.captions import write_captions
from recaption.engines import Answer
from recaption.language_model import LanguageModel, language_model, served_model
from recaption.prompt import Prompt, load_prompt
from recaption.recaption import Recaption, with_base
from recaption.rows import Rows
from recaption.vllm_engine import VllmEngine
from tests.parts import need
from tests.recaption.captioned import DENSE, QWEN, ROWS, SHARDS, FirstSentence, run_killed, write_scenes
from tests.recaption.simulator import MODEL as SIMULATED
from tests.recaption.simulator import Reply, completion, rewritten, simulator
from tests.recaption.tiny_qwen2_vl import drawn

MODEL = LanguageModel(None, "firstsentence", "0" * 64)
PROMPT = load_prompt("rewrite-v1")
REWRITE = Recaption(PROMPT, MODEL)


def with_checks(**rules: Any) -> Prompt:
    """rewrite-v1 with other rules of its checks, and two further draws where one of them is `retry`."""
    said = PROMPT.model_dump(exclude_none=True)
    retry = {"retry": {"times": 2, "temperature": 0.7}} if "retry" in str(rules) else {}
    return Prompt.model_validate(said | {"checks": said["checks"] | rules} | retry)


def write(dataset: Dataset, recaption: Recaption, engine: FirstSentence, *reuse: Dataset) -> Commit:
    return write_captions(dataset, recaption, lambda: nullcontext(engine), reuse=reuse)


def again(dataset: Dataset, prompt: Prompt = PROMPT, **rows: Any) -> Recaption:
    return with_base(Recaption(prompt, MODEL, Rows(**rows)), dataset)


def table(dataset: Dataset, recaption: Recaption) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.whole_table(recaption.group).to_pylist()
    return rows


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return write_scenes(tmp_path / "scenes")


def test_every_row_has_a_caption_or_a_reason(scenes: Dataset) -> None:
    engine = FirstSentence()
    commit = write(scenes, REWRITE, engine)
    rows = table(scenes, REWRITE)
    assert len(rows) == SHARDS * ROWS
    assert Counter(row["reason"] for row in rows) == {None: DENSE, "not_dense": 2 * SHARDS, "no_caption": SHARDS}
    assert all((row["text"] is None) == (row["status"] == "failed") for row in rows)
    assert (commit.rows_in, commit.rows_out) == (SHARDS * ROWS, DENSE)
    assert dict(commit.failed) == {"not_dense": 2 * SHARDS, "no_caption": SHARDS}
    assert len(engine.asked) == DENSE


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_captions_stand_beside_the_rows_they_were_made_from(scenes: Dataset, batch_rows: int) -> None:
    write(scenes, REWRITE, FirstSentence(batch_rows=batch_rows))
    dense = scenes.whole_table("source").column("caption").to_pylist()
    short = [row["text"] for row in table(scenes, REWRITE)]
    assert all(old.startswith(new.rstrip(".")) for old, new in zip(dense, short, strict=True) if new)


def test_the_dataset_stays_sound(scenes: Dataset) -> None:
    write(scenes, REWRITE, FirstSentence())
    assert audit(scenes, deep=True).sound


def test_a_second_run_opens_no_engine(scenes: Dataset) -> None:
    first = write(scenes, REWRITE, FirstSentence())
    assert write_captions(scenes, REWRITE, lambda: pytest.fail("nothing is left to ask")) == first


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_lots_that_were_answered_before_a_crash_are_not_asked_again(tmp_path: Path, batch_rows: int) -> None:
    whole, broken = write_scenes(tmp_path / "a/scenes"), write_scenes(tmp_path / "b/scenes")
    undisturbed = FirstSentence(batch_rows=batch_rows)
    write(whole, REWRITE, undisturbed)
    before, after = FirstSentence(4, batch_rows), FirstSentence(batch_rows=batch_rows)
    with pytest.raises(ConnectionError):
        write(broken, REWRITE, before)
    write(broken, REWRITE, after)
    assert before.asked + after.asked == undisturbed.asked
    assert len(before.asked) == (4 if batch_rows == 1 else 17 + 8)  # 3 lots of the first shard, 1 of the second
    assert broken.head and whole.head
    assert broken.head.content_hash == whole.head.content_hash


def test_an_answer_that_fails_a_check_is_a_failed_row_with_that_reason(scenes: Dataset) -> None:
    rewrite = Recaption(with_checks(over_long={"action": "reject", "words": 3}), MODEL)
    write(scenes, rewrite, FirstSentence())
    rows = [row for row in table(scenes, rewrite) if row["reason"] == "over_long"]
    assert rows
    assert all(row["text"] is None and "over_long" in row["checks"] for row in rows)


def test_a_flag_leaves_the_caption_and_says_so(scenes: Dataset) -> None:
    rewrite = Recaption(with_checks(over_long={"action": "flag", "words": 3}), MODEL)
    write(scenes, rewrite, FirstSentence())
    flagged = [row for row in table(scenes, rewrite) if row["checks"]]
    assert flagged
    assert all(row["status"] == "ok" and row["text"] and row["reason"] is None for row in flagged)


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_an_answer_to_retry_is_asked_with_other_seeds_until_it_passes(scenes: Dataset, batch_rows: int) -> None:
    def says(caption: str, draw: int) -> str:
        return "A quiet picture." if draw == (1 if "circle" in caption else 2) else "I am sorry."

    engine = FirstSentence(batch_rows=batch_rows, says=says)
    rewrite = Recaption(with_checks(refusal="retry"), MODEL)
    write(scenes, rewrite, engine)
    assert Counter(row["text"] for row in table(scenes, rewrite)) == {
        None: SHARDS * ROWS - DENSE,
        "A quiet picture.": DENSE,
    }
    draws = [question for question in engine.questions if question.draw]
    assert {question.sampling.method for question in draws} == {"random"}
    assert len({question.sampling.seed for question in draws}) == len(draws)
    telemetry = scenes.whole_table(f"{rewrite.group}.telemetry").to_pylist()
    assert {row["attempts"] for row in telemetry if row["attempts"]} == {2, 3}


def test_an_answer_that_never_passes_is_rejected_after_the_last_draw(scenes: Dataset) -> None:
    engine = FirstSentence(says=lambda caption, draw: "I am sorry.")
    rewrite = Recaption(with_checks(refusal="retry"), MODEL)
    commit = write(scenes, rewrite, engine)
    assert commit.failed["refusal"] == DENSE
    assert len(engine.asked) == 3 * DENSE


@pytest.mark.parametrize("dies_after", range(1, 12, 2))
def test_draws_that_were_answered_before_a_crash_are_not_asked_again(tmp_path: Path, dies_after: int) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    rewrite = Recaption(with_checks(refusal="retry"), MODEL)
    before = FirstSentence(dies_after, 8, says=lambda caption, draw: "I am sorry.")
    after = FirstSentence(batch_rows=8, says=lambda caption, draw: "I am sorry.")
    with pytest.raises(ConnectionError):
        write(scenes, rewrite, before)
    write(scenes, rewrite, after)
    asked = Counter((question.work, question.draw) for question in before.questions + after.questions)
    assert set(asked.values()) == {1}
    assert len(asked) == 3 * DENSE


def test_the_group_names_prompt_model_and_configuration() -> None:
    prompt, model, digest = REWRITE.group.removeprefix("caption.").rsplit("-", 2)
    assert (prompt, model) == ("rewrite-v1", "firstsentence")
    assert Recaption(PROMPT, LanguageModel(None, "firstsentence", "1" * 64)).group != REWRITE.group
    assert Recaption(PROMPT, MODEL, Rows(limit=3)).group != REWRITE.group
    assert len(digest) == 8


def test_telemetry_is_outside_the_content_hash(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        dataset = write_scenes(tmp_path / name / "scenes")
        hashes.append(write(dataset, REWRITE, FirstSentence()).content_hash)
        telemetry = dataset.whole_table(f"{REWRITE.group}.telemetry").to_pylist()
        assert Counter(row["engine"] for row in telemetry)["first-sentence 1"] == DENSE
    assert hashes[0] == hashes[1]


def test_a_model_is_known_by_its_files_and_not_by_its_path(tmp_path: Path) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    here, moved = language_model(QWEN), shutil.copytree(QWEN, tmp_path / "moved")
    assert language_model(moved, "Tiny Qwen-2.5!").identity() == here.identity()
    assert language_model(moved, "Tiny Qwen-2.5!").name == "tinyqwen2.5"
    template = json.loads((moved / "tokenizer_config.json").read_text())
    (moved / "tokenizer_config.json").write_text(json.dumps(template | {"model_max_length": 7}))
    assert language_model(moved).sha256 != here.sha256


@pytest.mark.parametrize(
    ("file", "text", "moves"),
    [
        ("chat_template.json", '{"chat_template": "{{ messages }}"}', True),
        ("additional_chat_templates/plain.jinja", "{{ messages }}", True),
        ("added_tokens.json", '{"<|im_end|>": 7}', True),
        ("special_tokens_map.json", '{"eos_token": "<|endoftext|>"}', True),
        ("generation_config.json", '{"eos_token_id": [1, 99]}', True),
        ("generation_config.json", '{"eos_token_id": EOS, "repetition_penalty": 1.05}', False),
        ("README.md", "A model.", False),
    ],
)
def test_a_model_is_known_by_every_file_that_decides_what_it_says(
    tmp_path: Path, file: str, text: str, moves: bool
) -> None:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    here, changed = language_model(QWEN), shutil.copytree(QWEN, tmp_path / "changed")
    ends = json.loads((changed / "generation_config.json").read_text())["eos_token_id"]
    (changed / file).parent.mkdir(exist_ok=True)
    (changed / file).write_text(text.replace("EOS", json.dumps(ends)))
    assert (language_model(changed).sha256 != here.sha256) == moves


def test_a_served_model_is_known_by_its_name_and_revision() -> None:
    one, other = served_model("Qwen/Qwen2.5-7B-Instruct"), served_model("Qwen/Qwen2.5-7B-Instruct", "a09a354")
    assert one.name == other.name == "qwen2.57binstruct"
    assert one.identity() != other.identity()


# Again


def test_identical_captions_are_asked_once(tmp_path: Path) -> None:
    same = {number: "A red circle lies at the left." for number in range(3, SHARDS * ROWS, 2) if number % ROWS > 2}
    scenes, engine = write_scenes(tmp_path / "scenes", same), FirstSentence(batch_rows=1)
    write(scenes, REWRITE, engine)
    assert len(engine.asked) == DENSE - len(same) + 1
    assert sum(row["text"] == "A red circle lies at the left." for row in table(scenes, REWRITE)) == len(same)


@pytest.mark.parametrize("batch_rows", [1, 8])
def test_a_change_in_a_few_captions_asks_about_those_alone(tmp_path: Path, batch_rows: int) -> None:
    changed = {5: "Two dogs run over a wide field at dawn.", 27: "A cat sleeps."}
    old, new = write_scenes(tmp_path / "old"), write_scenes(tmp_path / "new", changed)
    write(old, REWRITE, FirstSentence())
    engine = FirstSentence(batch_rows=batch_rows)
    write(new, REWRITE, engine, old)
    assert sorted(question.message for question in engine.questions) == sorted(map(PROMPT.message, changed.values()))
    telemetry = new.whole_table(f"{REWRITE.group}.telemetry").to_pylist()
    assert Counter(row["reused"] for row in telemetry)[f"old/{REWRITE.group}"] == DENSE - 2
    texts = [row["text"] for row in table(new, REWRITE)]
    before = [row["text"] for row in table(old, REWRITE)]
    assert [n for n, pair in enumerate(zip(texts, before, strict=True)) if pair[0] != pair[1]] == sorted(changed)


def test_other_checks_of_the_same_prompt_judge_the_captions_that_stand(scenes: Dataset) -> None:
    write(scenes, REWRITE, FirstSentence())
    strict = Recaption(with_checks(over_long={"action": "reject", "words": 5}), MODEL)
    engine = FirstSentence()
    write(scenes, strict, engine)
    failed = sum(row["reason"] == "over_long" for row in table(scenes, strict))
    assert 0 < failed < DENSE
    assert len(engine.asked) == failed  # what passes is not asked again


def test_all_asks_everything_afresh(scenes: Dataset) -> None:
    write(scenes, REWRITE, FirstSentence())
    engine = FirstSentence()
    write(scenes, again(scenes, only="all"), engine)
    assert len(engine.asked) == DENSE


def test_missing_goes_on_where_a_limited_run_stopped(scenes: Dataset) -> None:
    first, second, third = FirstSentence(), FirstSentence(), FirstSentence()
    some = again(scenes, limit=10)
    write(scenes, some, first)
    assert Counter(row["reason"] for row in table(scenes, some))["not_selected"] == DENSE - 10
    more = again(scenes, limit=10)
    write(scenes, more, second)
    rest = again(scenes)
    write(scenes, rest, third)
    assert [len(engine.asked) for engine in (first, second, third)] == [10, 10, DENSE - 20]
    assert len(set(first.asked + second.asked + third.asked)) == DENSE
    rows = table(scenes, rest)
    assert Counter(row["reason"] for row in rows) == {None: DENSE, "not_dense": 2 * SHARDS, "no_caption": SHARDS}
    assert audit(scenes, deep=True).sound


@pytest.mark.parametrize("only", ["failed", "flagged"])
def test_a_prompt_made_better_for_a_few_rows_asks_about_those_alone(scenes: Dataset, only: str) -> None:
    def says(caption: str, draw: int) -> str:
        return "I am sorry." if "triangle" in caption else "A quiet picture."

    first = Recaption(with_checks(refusal="reject" if only == "failed" else "flag"), MODEL)
    write(scenes, first, FirstSentence(says=says))
    wanting = [row["key"] for row in table(scenes, first) if "refusal" in row["checks"]]
    assert 0 < len(wanting) < DENSE
    better = PROMPT.model_copy(update={"version": "rewrite-v2", "text": PROMPT.text + " Never refuse."})
    engine = FirstSentence(says=lambda caption, draw: "A better picture.")
    rerun = again(scenes, better, only=only)
    assert rerun.rows.base == first.group
    write(scenes, rerun, engine)
    rows = table(scenes, rerun)
    assert [row["key"] for row in rows if row["text"] == "A better picture."] == wanting
    assert sum(row["text"] == "A quiet picture." for row in rows) == DENSE - len(wanting)
    assert len(set(engine.asked)) == len(engine.asked) <= len(wanting)
    assert {first.group, rerun.group} <= set(scenes.groups())


def test_changed_asks_about_rows_that_would_be_asked_otherwise_now(scenes: Dataset) -> None:
    write(scenes, again(scenes, limit=5), FirstSentence())
    engine = FirstSentence()
    write(scenes, again(scenes, only="changed"), engine)
    assert len(engine.asked) == DENSE - 5
    other = PROMPT.model_copy(update={"version": "rewrite-v2", "text": PROMPT.text + " Be brief."})
    engine = FirstSentence()
    write(scenes, again(scenes, other, only="changed"), engine)
    assert len(engine.asked) == DENSE


def test_failed_without_earlier_captions_is_refused(scenes: Dataset) -> None:
    with pytest.raises(ConfigurationError, match="no earlier captions of the prompt 'rewrite'"):
        again(scenes, only="failed")
    with pytest.raises(ConfigurationError, match=r"has no caption group 'caption\.x' to go on from; it has none"):
        again(scenes, base="caption.x")


def test_a_condition_chooses_rows_by_any_column(scenes: Dataset) -> None:
    where = "caption LIKE '%circle%' AND task = 'image2text'"
    chosen, engine = again(scenes, where=where), FirstSentence()
    write(scenes, chosen, engine)
    assert engine.asked
    assert all("circle" in message for message in engine.asked)
    asked = {row["key"] for row in table(scenes, chosen) if row["status"] == "ok"}
    rest = again(scenes, only="all", where=f"\"{chosen.group}\".reason = 'not_selected'")
    write(scenes, rest, FirstSentence())
    assert asked.isdisjoint(row["key"] for row in table(scenes, rest) if row["status"] == "ok")
    assert audit(scenes).sound


@pytest.mark.parametrize(
    "where",
    [
        "nosuch = 1",
        "width >",
        "1 = 1; DROP TABLE x",
        "key IN (SELECT content FROM read_text('/etc/passwd'))",
        "random() < 0.5",
        "current_date > '2020-01-01'",
        "1 = 1) OR (1 = 1",
    ],
)
def test_what_is_no_condition_over_the_columns_is_refused(scenes: Dataset, where: str) -> None:
    with pytest.raises(ConfigurationError, match="--where"):
        write(scenes, again(scenes, where=where), FirstSentence())


def test_a_sample_is_the_same_each_time_and_holds_every_smaller_one(tmp_path: Path) -> None:
    keys: list[set[str]] = []
    for share in (0.2, 0.5):
        scenes = write_scenes(tmp_path / str(share))
        sampled = again(scenes, sample=share)
        write(scenes, sampled, FirstSentence())
        keys.append({row["key"] for row in table(scenes, sampled) if row["status"] == "ok"})
    assert keys[0] < keys[1]
    assert len(keys[1]) < DENSE


# Through the client


def test_what_the_engine_gave_up_is_asked_again_after_a_failure(scenes: Dataset) -> None:
    class GivesUp(FirstSentence):
        def answers(self, lots: Any) -> Any:
            for number, answered in enumerate(super().answers(lots)):
                if number == 3:
                    raise HarmonError("the server is sick")
                yield [(question, self.lose(answer)) for question, answer in answered]

        def lose(self, answer: Answer) -> Answer:
            return Answer(None, "server_error", None, None, None, 1.0, 5, "here")

    with pytest.raises(HarmonError):
        write(scenes, REWRITE, GivesUp(batch_rows=1))
    engine = FirstSentence(batch_rows=1)
    commit = write(scenes, REWRITE, engine)
    assert commit.rows_out == DENSE
    assert len(engine.asked) == DENSE


def test_why_a_server_would_not_answer_stands_in_the_telemetry(scenes: Dataset) -> None:
    long = PROMPT.message(scenes.table("source", 0).column("caption").to_pylist()[3])
    refusal = Reply(b"This model's maximum context length is 64 tokens", status=400)
    rewrite = Recaption(PROMPT, served_model(SIMULATED))
    with simulator(lambda m: refusal if m == long else completion(rewritten(m))) as server:
        commit = write_captions(scenes, rewrite, lambda: VllmEngine([server.address], SIMULATED, concurrency=4))
    assert commit.failed["prompt_too_long"] == 1
    telemetry = scenes.whole_table(f"{rewrite.group}.telemetry").to_pylist()
    details = {row["detail"] for row in telemetry}
    assert details == {None, "400: This model's maximum context length is 64 tokens"}


def test_a_slow_answer_holds_up_no_other_shard(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    first = PROMPT.message(scenes.table("source", 0).column("caption").to_pylist()[3])
    finished: list[int] = []
    model = served_model(SIMULATED)

    def behave(message: str) -> Any:
        return completion(rewritten(message), after=2.0 if message == first else 0.0)

    with simulator(behave) as server:
        write_captions(
            scenes,
            Recaption(PROMPT, model),
            lambda: VllmEngine([server.address], SIMULATED, concurrency=4),
            lambda progress: finished.append(progress.rows_done),
        )
        assert set(server.seen.messages.values()) == {1}
    assert finished == [ROWS, 2 * ROWS]
    key = Recaption(PROMPT, model).step(scenes).key
    written = [
        Path(scenes.store.where(f"steps/{key}/{name}")).stat().st_mtime_ns for name in ("00000.json", "00001.json")
    ]
    assert written[1] < written[0]


def test_after_a_kill_at_most_the_requests_in_flight_are_asked_again(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    with simulator(lambda message: completion(rewritten(message), after=0.05)) as server:
        for share in (0.3, 0.7):
            run_killed(
                scenes.root, server.address, SIMULATED, 8, lambda wanted=share * DENSE: server.seen.requests >= wanted
            )
        recaption = Recaption(PROMPT, served_model(SIMULATED))
        commit = write_captions(scenes, recaption, lambda: VllmEngine([server.address], SIMULATED, concurrency=8))
        assert commit.rows_out == DENSE
        assert len(server.seen.messages) == DENSE
        assert server.seen.requests - DENSE <= 2 * 8  # two kills, eight in flight at each
    assert audit(scenes, deep=True).sound


# Images


def test_images_are_captioned_at_the_prompts_size_and_identical_ones_once(tmp_path: Path) -> None:
    dense = load_prompt("caption-dense-v1")
    scenes = write_scenes(tmp_path / "scenes", image=lambda number: drawn(number % 12, (300, 200)))
    pictures = SHARDS * (ROWS - 1)  # every row but the text one, its caption or not
    with simulator() as server:
        recaption = Recaption(dense, served_model(SIMULATED))
        commit = write_captions(scenes, recaption, lambda: VllmEngine([server.address], SIMULATED, concurrency=4))
        urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.seen.bodies]
    assert (commit.rows_out, dict(commit.failed)) == (pictures, {"no_image": SHARDS})
    assert len(urls) == len(set(urls)) == 12
    for url in urls:
        with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,")))) as sent:
            assert sent.size == (308, 196)  # 300 x 200 in steps of 28
    assert audit(scenes, deep=True).sound


def test_an_image_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    short = load_prompt("caption-short-v1")
    scenes = write_scenes(tmp_path / "scenes", image=lambda number: drawn(number) if number != 7 else b"no picture")
    with simulator() as server:
        recaption = Recaption(short, served_model(SIMULATED))
        commit = write_captions(scenes, recaption, lambda: VllmEngine([server.address], SIMULATED))
    assert commit.failed["unreadable_image"] == 1
    assert commit.rows_out == SHARDS * (ROWS - 1) - 1


def test_a_dataset_of_which_no_image_can_be_read_ends_too(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    with simulator() as server:
        recaption = Recaption(load_prompt("caption-short-v1"), served_model(SIMULATED))
        commit = write_captions(scenes, recaption, lambda: VllmEngine([server.address], SIMULATED))
        assert server.seen.requests == 0
    assert (commit.rows_out, commit.failed["unreadable_image"]) == (0, SHARDS * (ROWS - 1))
