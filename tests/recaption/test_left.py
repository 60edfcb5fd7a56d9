"""What is left to ask: the look before the bill and the run agree, and nothing that was answered is asked again."""

import shutil
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.errors import HarmonError
from pipelines.forget import forget
from pipelines.request import Request
from recaption.captions import write_captions
from recaption.engines import Answer, Question
from recaption.estimate import count
from recaption.language_model import served_model
from recaption.ledger import Ledger
from recaption.prompt import Prompt, Sampling, load_prompt
from recaption.recaption import Recaption, with_base
from recaption.rows import Rows
from recaption.vllm_engine import VllmEngine
from recaption.work import asking
from tests.recaption.captioned import DENSE, ROWS, SHARDS, FirstSentence, run_killed, write_scenes
from tests.recaption.simulator import MODEL as SIMULATED
from tests.recaption.simulator import Reply, completion, rewritten, simulator
from tests.recaption.test_captions import MODEL, PROMPT, REWRITE, again, table, with_checks, write

QUESTION = Question("0" * 32, 0, "message", Sampling(method="greedy", max_tokens=8))
ASKING = asking(PROMPT, MODEL)
ANSWER = Answer("A dog.", None, "stop", 10, 5, 0.1, 1, "here")


@pytest.fixture
def scenes(tmp_path: Path) -> Dataset:
    return write_scenes(tmp_path / "scenes")


def half_good(caption: str, draw: int) -> str:
    """Refuses, flags itself or answers well, by the caption."""
    if "triangle" in caption:
        return "I am sorry."
    return "This image shows a dog." if "circle" in caption else "A quiet picture of a dog in the grass."


# Counting and asking


@pytest.mark.parametrize("only", ["missing", "failed", "flagged", "changed", "all"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_dry_run_counts_what_the_run_asks(scenes: Dataset, only: str, killed: bool) -> None:
    """With other checks, under which some of the captions that stand do not, and with answers of a killed run."""
    write(scenes, again(scenes, limit=25), FirstSentence(says=half_good))
    if killed:
        with pytest.raises(ConnectionError):
            write(scenes, again(scenes), FirstSentence(1, 4, says=half_good))
    strict = with_checks(over_long={"action": "reject", "words": 6})
    for prompt in (PROMPT, strict):
        chosen = again(scenes, prompt, only=only)
        told = count(scenes, chosen)
        engine = FirstSentence(says=lambda caption, draw: "A dog.")
        write(scenes, chosen, engine)
        assert told.requests == len(engine.asked), prompt.hash
    assert audit(scenes, deep=True).sound


def test_a_look_leaves_no_trace(scenes: Dataset) -> None:
    before = sorted(scenes.root.rglob("*"))
    assert count(scenes, REWRITE).requests == DENSE
    assert sorted(scenes.root.rglob("*")) == before


# The ledger


def test_answers_of_a_killed_run_are_found_after_another_commit(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    model = served_model(SIMULATED)
    with simulator(lambda message: completion(rewritten(message), after=0.05)) as server:
        run_killed(scenes.root, server.address, SIMULATED, 4, lambda: server.seen.requests >= DENSE // 2)
        for rows in (Rows(limit=3), Rows()):  # the first moves the base group, and with it the step's key
            recaption = with_base(Recaption(PROMPT, model, rows), scenes)
            write_captions(scenes, recaption, lambda: VllmEngine([server.address], SIMULATED, concurrency=4))
        assert recaption.rows.base
        assert len(server.seen.messages) == DENSE
        assert server.seen.requests - DENSE <= 4  # what was in flight
    assert not Ledger.folder(scenes).exists()
    assert audit(scenes, deep=True).sound


def test_the_ledger_goes_with_the_commit_that_holds_it_and_not_before(scenes: Dataset) -> None:
    with pytest.raises(ConnectionError):
        write(scenes, REWRITE, FirstSentence(3, 8))
    write(scenes, Recaption(load_prompt("rewrite-v1"), served_model("another")), FirstSentence())
    assert Ledger.folder(scenes).is_dir()  # of the model that was killed
    engine = FirstSentence()
    write(scenes, REWRITE, engine)
    assert len(engine.asked) == DENSE - 17  # two lots of the first shard's 17 rows, and its last one
    assert not Ledger.folder(scenes).exists()


def test_forgetting_waits_for_the_ledger(scenes: Dataset) -> None:
    key = scenes.whole_table("source").column("key").to_pylist()[3]
    with pytest.raises(ConnectionError):
        write(scenes, REWRITE, FirstSentence(3, 8))
    for folder in Ledger.folder(scenes).parent.iterdir():
        if folder != Ledger.folder(scenes):
            shutil.rmtree(folder)  # of the step itself
    with pytest.raises(HarmonError, match="keeps answers of a recaptioning"):
        forget(scenes, Request(keys=frozenset({key})))
    write(scenes, REWRITE, FirstSentence())
    assert forget(scenes, Request(keys=frozenset({key})))


def test_what_a_kill_right_after_the_commit_left_goes_with_the_next_run(
    scenes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(ledger: Ledger, works: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "committed", killed)
        with pytest.raises(KeyboardInterrupt):
            write(scenes, REWRITE, FirstSentence())
    assert scenes.head and scenes.head.configuration["group"] == REWRITE.group
    assert Ledger.folder(scenes).is_dir()
    engine = FirstSentence()
    assert write(scenes, REWRITE, engine) == scenes.head
    assert engine.asked == []
    assert not Ledger.folder(scenes).exists()


def test_refusals_are_asked_again_and_texts_are_not(tmp_path: Path) -> None:
    refused = Answer(None, "refused_by_server", None, None, None, 0.1, 1, "here", "400: no images")
    other = Question("1" * 32, 0, "message", QUESTION.sampling)
    with Ledger(tmp_path / "answers", ASKING) as ledger:
        ledger.keep([(QUESTION, ANSWER), (other, refused)])
        assert dict(ledger.answers([QUESTION.work, other.work])) == {QUESTION.work: [ANSWER], other.work: [refused]}
    with Ledger(tmp_path / "answers", ASKING) as ledger:
        assert dict(ledger.answers([QUESTION.work, other.work])) == {QUESTION.work: [ANSWER]}


def test_a_second_process_takes_nothing_from_under_the_first(tmp_path: Path) -> None:
    refused = Answer(None, "server_error", None, None, None, 0.1, 1, "here", "oops")
    with Ledger(tmp_path / "answers", ASKING) as first:
        first.keep([(QUESTION, refused)])
        with Ledger(tmp_path / "answers", ASKING) as second:
            second.committed([QUESTION.work])
        assert dict(first.answers([QUESTION.work])) == {QUESTION.work: [refused]}
    assert not (tmp_path / "answers").exists()


def test_a_loss_of_power_leaves_the_ledger_sound_and_damage_is_told(tmp_path: Path) -> None:
    with Ledger(tmp_path / "answers", ASKING) as ledger:
        (synchronous,) = ledger._database.execute("PRAGMA synchronous").fetchone()
        ledger.keep([(QUESTION, ANSWER)])
    assert synchronous == 1  # NORMAL: with a write-ahead log no loss of power damages the file
    (tmp_path / "answers" / "answers.sqlite").write_bytes(b"SQLite format 3\0" + b"torn" * 1000)
    told = pytest.raises(HarmonError, match=r"ledger of answers .* cannot be used .*delete the folder and rerun")
    with told, Ledger(tmp_path / "answers", ASKING) as ledger:
        list(ledger.answers([QUESTION.work]))


def test_a_page_that_is_damaged_during_a_run_is_told(scenes: Dataset) -> None:
    with pytest.raises(ConnectionError):
        write(scenes, REWRITE, FirstSentence(3, 8))
    database = Ledger.folder(scenes) / "answers.sqlite"
    sqlite3.connect(database).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(database.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    database.write_bytes(data)
    with pytest.raises(HarmonError, match="cannot be used"):
        write(scenes, REWRITE, FirstSentence())


# Afresh


def test_all_asks_everything_afresh_each_time(scenes: Dataset) -> None:
    engines = [FirstSentence() for _ in range(3)]
    groups = []
    for engine in engines:
        chosen = again(scenes, only="all")
        groups.append(chosen.group)
        write(scenes, chosen, engine)
    assert [len(engine.asked) for engine in engines] == [DENSE] * 3
    assert len(set(groups)) == 3


def test_a_killed_all_goes_on_from_its_own_answers_alone(scenes: Dataset) -> None:
    with pytest.raises(ConnectionError):
        write(scenes, REWRITE, FirstSentence(2, 8))  # what others were answered is not taken
    first, second = FirstSentence(3, 8), FirstSentence()
    with pytest.raises(ConnectionError):
        write(scenes, again(scenes, only="all"), first)
    write(scenes, again(scenes, only="all"), second)
    assert sorted(first.asked + second.asked) == sorted(set(first.asked + second.asked))
    assert len(first.asked + second.asked) == DENSE


# Draws


def drawn_twice(caption: str, draw: int) -> str:
    return "A quiet picture." if draw == 1 else "I am sorry."


def test_a_later_draw_says_that_it_is_one_and_what_all_draws_took(scenes: Dataset) -> None:
    rewrite = Recaption(with_checks(refusal="retry"), MODEL)
    write(scenes, rewrite, FirstSentence(says=drawn_twice))
    rows = [row for row in table(scenes, rewrite) if row["work"]]
    assert {row["draw"] for row in rows} == {1}
    assert all(row["drawn"] for row in rows)
    assert {(row["tokens_in"], row["tokens_out"]) for row in rows} == {(20, 10)}


def retried(times: int, temperature: float) -> Prompt:
    said = with_checks(refusal="retry").model_dump(exclude_none=True)
    return Prompt.model_validate(said | {"retry": {"times": times, "temperature": temperature}})


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [(retried(1, 0.7), 0), (retried(3, 0.7), 0), (retried(2, 0.9), DENSE), (with_checks(refusal="reject"), DENSE)],
)
def test_a_later_draw_answers_only_a_prompt_that_would_draw_it_so(scenes: Dataset, prompt: Prompt, asked: int) -> None:
    write(scenes, Recaption(with_checks(refusal="retry"), MODEL), FirstSentence(says=drawn_twice))
    engine = FirstSentence()
    write(scenes, Recaption(prompt, MODEL), engine)
    assert len(engine.asked) == asked


def test_later_draws_of_a_killed_run_answer_only_one_that_would_draw_them_so(scenes: Dataset) -> None:
    with pytest.raises(ConnectionError):
        write(
            scenes, Recaption(retried(3, 0.7), MODEL), FirstSentence(DENSE, 1, says=lambda caption, draw: "I am sorry.")
        )
    engine = FirstSentence(batch_rows=1, says=lambda caption, draw: "I am sorry.")
    warmer = Recaption(retried(3, 0.9), MODEL)
    told = count(scenes, warmer)
    commit = write(scenes, warmer, engine)
    assert commit.failed["refusal"] == DENSE
    assert {question.sampling.temperature for question in engine.questions if question.draw} == {0.9}
    assert sum(question.draw == 1 for question in engine.questions) == DENSE
    assert told.requests == DENSE  # works; those with a first answer have their further draws left


# What stands


def test_texts_that_stand_are_judged_by_todays_checks(scenes: Dataset) -> None:
    write(scenes, REWRITE, FirstSentence())
    strict = with_checks(over_long={"action": "reject", "words": 5}, refusal="flag")
    kept = Recaption(strict, MODEL, Rows(base=REWRITE.group))
    write(scenes, kept, FirstSentence())
    before, rows = table(scenes, REWRITE), table(scenes, kept)
    for old, new in zip(before, rows, strict=True):
        long = old["text"] is not None and len(old["text"].split()) > 5
        assert (new["reason"], new["text"]) == (("over_long", None) if long else (old["reason"], old["text"]))
        assert ("over_long" in new["checks"]) == long
    assert any(row["reason"] == "over_long" for row in rows)


@pytest.mark.parametrize("only", ["failed", "flagged"])
def test_what_todays_checks_turn_down_is_asked_again(scenes: Dataset, only: str) -> None:
    write(scenes, REWRITE, FirstSentence())
    long = sum(len((row["text"] or "").split()) > 5 for row in table(scenes, REWRITE))
    action = "reject" if only == "failed" else "flag"
    strict = with_checks(over_long={"action": action, "words": 5})
    engine = FirstSentence(says=lambda caption, draw: "A dog.")
    chosen = again(scenes, strict, only=only)
    write(scenes, chosen, engine)
    assert 0 < long <= len(engine.asked) < DENSE
    kept = [row["text"] for row in table(scenes, chosen) if row["text"] not in (None, "A dog.")]
    assert len(kept) == DENSE - len(engine.asked)
    assert all(len(text.split()) <= 5 for text in kept)


def test_a_commit_says_which_captions_it_looked_through(tmp_path: Path) -> None:
    old, new = write_scenes(tmp_path / "old"), write_scenes(tmp_path / "new")
    source = write(old, REWRITE, FirstSentence())
    commit = write(new, REWRITE, FirstSentence(), old)
    (told,) = commit.context["captions_consulted"]
    assert (told["dataset"], told["commit"], told["content_hash"]) == ("old", source.number, source.content_hash)
    assert told["groups"] == {REWRITE.group: old.group_hash(REWRITE.group)}
    telemetry = new.whole_table(f"{REWRITE.group}.telemetry").to_pylist()
    assert Counter(row["reused_content"] for row in telemetry)[source.content_hash] == DENSE


# Pictures


def test_pictures_in_memory_are_those_in_flight_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is drawn three times; the run is stopped among the second draws and goes on."""
    scenes = write_scenes(tmp_path / "scenes", image=lambda number: b"picture %d" % number)
    alive = most = made = 0
    lock = threading.Lock()

    class Counted(bytes):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def paint(data: bytes, size: Any) -> bytes:
        nonlocal alive, most, made
        with lock:
            alive, made = alive + 1, made + 1
            most = max(most, alive)
        return Counted(data)

    monkeypatch.setattr("recaption.pictures.picture", paint)
    pictures = SHARDS * (ROWS - 1)
    recaption = Recaption(load_prompt("caption-short-v1"), served_model(SIMULATED))
    stopped = False

    def behave(message: str) -> Reply:
        if not stopped and server.seen.requests > pictures + 10:
            return Reply(b"gone", status=404)
        return completion("I am sorry.")

    with simulator(behave) as server:
        open_engine = lambda: VllmEngine([server.address], SIMULATED, concurrency=4)  # noqa: E731
        with pytest.raises(HarmonError, match="answered 404"):
            write_captions(scenes, recaption, open_engine)
        stopped = True
        commit = write_captions(scenes, recaption, open_engine)
    assert commit.failed["refusal"] == pictures
    assert made <= 3 * pictures + 4 + 1
    assert most <= 2 * 4  # in flight, and those just answered
