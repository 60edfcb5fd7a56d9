"""The client of chat servers: every question answered once, servers kept busy and no more, faults told or mended."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from pipelines.errors import HarmonError
from recaption.endpoint import MOST_REPLY_BYTES
from recaption.engines import Answer, Question
from recaption.prompt import Sampling
from recaption.vllm_engine import VllmEngine
from recaption.watch import PROBE
from recaption.window import FIRST
from tests.recaption.simulator import MODEL, Behaviour, Reply, completion, rewritten, simulator

SAMPLING = Sampling(method="greedy", max_tokens=8)
BUSY = Reply(b"slow down", status=429)


def questions(number: int) -> list[Question]:
    return [Question(f"{n:032x}", 0, f"message {n}", SAMPLING) for n in range(number)]


def ask(engine: VllmEngine, asked: Sequence[Question], lot: int = 1) -> dict[str, Answer]:
    """Answers by message; fails where a question comes back twice."""
    answers: dict[str, Answer] = {}
    for answered in engine.answers(asked[start : start + lot] for start in range(0, len(asked), lot)):
        for question, answer in answered:
            assert question.message not in answers
            answers[question.message] = answer
    return answers


def texts(asked: Sequence[Question]) -> dict[str, str | None]:
    return {question.message: rewritten(question.message) for question in asked}


def said(answers: dict[str, Answer]) -> dict[str, str | None]:
    return {message: answer.text for message, answer in answers.items()}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recaption.vllm_engine._FIRST_WAIT", 0.01)
    monkeypatch.setattr("recaption.watch._LOOK_EVERY", (0.02, 0.1))
    monkeypatch.setattr("recaption.endpoint._LONGEST_REST", 0.2)


def test_every_question_is_answered_once_and_load_is_bounded() -> None:
    asked = questions(300)
    with simulator(lambda m: completion(rewritten(m), after=int(m[8:]) % 7 / 1000)) as server:
        with VllmEngine([server.address], MODEL, concurrency=5) as engine:
            answers = ask(engine, asked, lot=7)
            assert engine.version == "vllm 0.0-simulated"
        assert 2 <= server.seen.most <= 5
        assert set(server.seen.messages.values()) == {1}
    assert said(answers) == texts(asked)


def test_a_request_says_everything_about_sampling() -> None:
    random = Sampling(method="random", max_tokens=9, temperature=0.5, top_p=0.9, seed=4)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
    neutral |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    with simulator() as server, VllmEngine([server.address], MODEL) as engine:
        ask(engine, questions(1))
        ask(engine, [Question("a", 1, "again", random, image=lambda: b"\xff\xd8")])
        greedy, other = server.seen.bodies
    assert (
        greedy
        == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "message 0"}],
            "max_tokens": 8,
            "temperature": 0.0,
        }
        | neutral
    )
    assert {key: other[key] for key in ("temperature", "seed", *neutral)} == neutral | {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 4,
    }
    picture, words = other["messages"][0]["content"]
    assert picture == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g="}}
    assert words == {"type": "text", "text": "again"}


def faulty(fault: Reply, times: int = 2) -> Behaviour:
    """Every message meets the fault that many times before it is answered."""
    met: Counter[str] = Counter()

    def behave(message: str) -> Reply:
        met[message] += 1
        return fault if met[message] <= times else completion(rewritten(message))

    return behave


GOOD = completion("A long enough text to be cut.").body
FAULTS = {
    "busy": BUSY,
    "unavailable": Reply(b"", status=503),
    "internal error": Reply(b"oops", status=500),
    "no JSON": Reply(b"{not json"),
    "no choices": Reply(b'{"choices": []}'),
    "aborted": completion("A long", finish="abort"),
    "a number for a text": Reply(GOOD.replace(b'"A long enough text to be cut."', b"7")),
    "truncated": Reply(GOOD, cut=20),
    "no body at all": Reply(GOOD, cut=0),
    "endless": Reply(b" " * (MOST_REPLY_BYTES + 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_transient_fault_is_tried_again_and_nothing_is_lost_or_doubled(fault: str) -> None:
    asked = questions(3 if fault == "endless" else 40)
    with simulator(faulty(FAULTS[fault])) as server, VllmEngine([server.address], MODEL) as engine:
        answers = ask(engine, asked)
        assert {server.seen.messages[question.message] - 3 for question in asked} <= {0, 1}  # 1: as a probe
        assert sum(server.seen.messages.values()) <= 3 * len(asked) + 10
    assert said(answers) == texts(asked)
    assert {answer.attempts for answer in answers.values()} == {3}


def test_a_slow_drip_ends_at_the_deadline_and_a_slow_answer_does_not() -> None:
    met: Counter[str] = Counter()

    def behave(message: str) -> Reply:
        met[message] += 1
        drips = message == "message 0" and met[message] == 1
        return Reply(GOOD, drip=0.05) if drips else completion(rewritten(message), after=0.6)

    asked = questions(3)
    with simulator(behave) as server, VllmEngine([server.address], MODEL, deadline_seconds=1.0) as engine:
        answers = ask(engine, asked)
    assert said(answers) == texts(asked)
    assert [answers[q.message].attempts for q in asked] == [2, 1, 1]


def test_a_storm_of_429_is_weathered_with_fewer_requests() -> None:
    began = time.monotonic()
    lock, allowed = threading.Lock(), 8
    now = refused = 0

    def leave() -> None:
        nonlocal now
        with lock:
            now -= 1

    def behave(message: str) -> Reply:
        nonlocal now, refused
        with lock:
            if now >= allowed or time.monotonic() - began < 0.3:
                refused += 1
                return BUSY
            now += 1
        threading.Timer(0.02, leave).start()
        return completion(rewritten(message), after=0.02)

    asked = questions(400)
    with simulator(behave) as server, VllmEngine([server.address], MODEL, concurrency=128) as engine:
        answers = ask(engine, asked)
    assert said(answers) == texts(asked)
    assert refused < 2 * len(asked)  # a client that hammers is refused tens of times for each answer


def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    times: list[float] = []

    def behave(message: str) -> Reply:
        times.append(time.monotonic())
        if len(times) == 1:
            return Reply(b"", status=429, headers=("Retry-After: 0.4",))  # longer than _LONGEST_REST here
        return completion("A dog.")

    with simulator(behave) as server, VllmEngine([server.address], MODEL) as engine:
        ask(engine, questions(1))
    assert times[1] - times[0] >= 0.4


def test_endpoints_share_the_work() -> None:
    asked = questions(200)
    slow: Behaviour = lambda m: completion(rewritten(m), after=0.01)  # noqa: E731
    with simulator(slow) as a, simulator(slow) as b, VllmEngine([a.address, b.address], MODEL, concurrency=8) as engine:
        answers = ask(engine, asked)
        counts = [a.seen.requests, b.seen.requests]
    assert sum(counts) == 200
    assert min(counts) > 60
    assert said(answers) == texts(asked)


def test_an_endpoint_that_dies_for_good_leaves_its_work_to_the_others() -> None:
    asked = questions(400)
    slow: Behaviour = lambda m: completion(rewritten(m), after=0.02)  # noqa: E731
    with (
        simulator(slow) as a,
        simulator(slow) as b,
        VllmEngine([a.address, b.address], MODEL, concurrency=16) as engine,
    ):
        threading.Timer(0.1, a.die).start()
        answers = ask(engine, asked)
    assert said(answers) == texts(asked)
    assert b.seen.requests > a.seen.requests


def test_all_endpoints_die_and_one_comes_back() -> None:
    asked = questions(300)
    slow: Behaviour = lambda m: completion(rewritten(m), after=0.02)  # noqa: E731
    with simulator(slow) as a, simulator(slow) as b, VllmEngine([a.address, b.address], MODEL, concurrency=8) as engine:
        for wait, what in ((0.1, a.die), (0.15, b.die), (0.8, b.come_back)):
            threading.Timer(wait, what).start()
        answers = ask(engine, asked)
        repeated = sum((a.seen.messages + b.seen.messages).values()) - len(asked)
    assert said(answers) == texts(asked)
    assert repeated <= 16 + 2  # what was in flight at the two deaths, and a probe after each


def test_a_server_that_is_not_there_is_told_of_within_seconds() -> None:
    with simulator() as server:
        pass
    began = time.monotonic()
    with pytest.raises(HarmonError, match="No vLLM server answers"), VllmEngine([server.address], MODEL):
        pass
    assert time.monotonic() - began < 10


def test_servers_that_die_and_stay_dead_are_told_of_after_the_patience() -> None:
    slow: Behaviour = lambda m: completion(rewritten(m), after=0.02)  # noqa: E731
    with simulator(slow) as server, VllmEngine([server.address], MODEL, patience_seconds=0.5) as engine:
        threading.Timer(0.1, server.die).start()
        began = time.monotonic()
        with pytest.raises(HarmonError, match="No vLLM server is left"):
            ask(engine, questions(100_000))
        assert time.monotonic() - began < 10


def test_what_was_answered_before_a_failure_is_handed_over() -> None:
    lost = Reply(b'{"error": {"message": "The model `tiny` does not exist."}}', status=404)
    bad: Behaviour = lambda m: completion("A dog.") if m != "message 50" else lost  # noqa: E731
    answers: list[str] = []
    with simulator(bad) as server, VllmEngine([server.address], MODEL, concurrency=4) as engine:
        with pytest.raises(HarmonError, match="does not exist"):
            for answered in engine.answers(iter([question] for question in questions(100))):
                answers += [question.message for question, _ in answered]
        assert server.seen.requests - len(answers) <= 4


def test_a_wrong_model_name_stops_before_anything_is_asked() -> None:
    refused = pytest.raises(HarmonError, match="does not serve the model 'other'; it serves tiny")
    with simulator() as server, refused, VllmEngine([server.address], "other"):
        pass
    assert server.seen.requests == 0


def test_a_server_that_answers_nothing_but_errors_is_told_of_with_its_words() -> None:
    with (
        simulator(lambda m: Reply(b"cuda is gone", status=500)) as server,
        VllmEngine([server.address], MODEL, patience_seconds=0.5) as engine,
        pytest.raises(HarmonError, match="answered 500: cuda is gone"),
    ):
        ask(engine, questions(50))


def test_a_server_that_breaks_in_the_middle_does_not_fail_row_after_row() -> None:
    seen = 0

    def behave(message: str) -> Reply:
        nonlocal seen
        seen += 1
        return completion("A dog.") if seen <= 100 else Reply(b"cuda is gone", status=500)

    failed = 0
    told = pytest.raises(HarmonError, match="cuda is gone")
    with (
        simulator(behave) as server,
        VllmEngine([server.address], MODEL, concurrency=8, patience_seconds=0.5) as engine,
        told,
    ):
        for answered in engine.answers(iter([question] for question in questions(1000))):
            failed += sum(answer.refusal == "server_error" for _, answer in answered)
    assert failed == 0


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (Reply(b"This model's maximum context length is 64 tokens", status=400), "prompt_too_long"),
        (Reply(b"no such thing", status=400), "refused_by_server"),
        (Reply(b"poison", status=500), "server_error"),
        (Reply(b"{", cut=0), "broken_off"),
        (Reply(b"{"), "broken_reply"),
        (Reply(b"", after=30.0), "timed_out"),
        (completion("A dog and", finish="repetition"), "unfinished"),
    ],
)
def test_a_question_that_cannot_be_answered_fails_alone(reply: Reply, refusal: str) -> None:
    asked = questions(30)
    one: Behaviour = lambda m: reply if m == "message 7" else completion(rewritten(m))  # noqa: E731
    with simulator(one) as server, VllmEngine([server.address], MODEL, deadline_seconds=0.4) as engine:
        answers = ask(engine, asked)
    bad = answers.pop("message 7")
    assert (bad.text, bad.refusal) == (None, refusal)
    assert said(answers) == {m: t for m, t in texts(asked).items() if m != "message 7"}


def test_no_more_is_read_ahead_than_is_in_flight() -> None:
    taken = 0

    def lots() -> Iterator[list[Question]]:
        nonlocal taken
        for question in questions(500):
            taken += 1
            yield [question]

    done = 0
    slow: Behaviour = lambda m: completion("A dog.", after=0.005)  # noqa: E731
    with simulator(slow) as server, VllmEngine([server.address], MODEL, concurrency=10) as engine:
        for answered in engine.answers(lots()):
            assert taken - done <= 10
            done += len(answered)
    assert done == 500


def test_an_empty_lot_is_asked_for_again_after_the_next_answer() -> None:
    first, second = questions(2)
    came: list[str] = []

    def lots() -> Iterator[list[Question]]:
        yield [first]
        while not came:
            yield []
        yield [second]

    with simulator() as server, VllmEngine([server.address], MODEL) as engine:
        for answered in engine.answers(lots()):
            came += [question.message for question, _ in answered]
    assert came == ["message 0", "message 1"]


def test_a_lone_surrogate_in_an_answer_does_not_stop_the_run() -> None:
    body = json.loads(completion("x").body)
    body["choices"][0]["message"]["content"] = "A dog \ud800."
    with simulator(lambda m: Reply(json.dumps(body).encode())) as server, VllmEngine([server.address], MODEL) as engine:
        (answer,) = ask(engine, questions(1)).values()
    assert answer.text == "A dog ?."


def test_an_error_nobody_foresaw_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("recaption.endpoint.Endpoint._answer", broken)
    with simulator() as server, VllmEngine([server.address], MODEL) as engine, pytest.raises(ZeroDivisionError):
        ask(engine, questions(10))


# Servers that are sick, and rows that are


def test_a_server_that_refuses_everything_is_told_of_with_its_words() -> None:
    refusal = Reply(b"At most 0 image(s) may be provided", status=400)
    answers: list[Answer] = []
    with (
        simulator(lambda m: refusal) as server,
        VllmEngine([server.address], MODEL) as engine,
        pytest.raises(HarmonError, match=r"answered none; it answered 400: At most 0 image\(s\) may be provided"),
    ):
        for answered in engine.answers(iter([question] for question in questions(5000))):
            answers += [answer for _, answer in answered]
    assert server.seen.requests <= FIRST + 20  # the first window, and as many as it takes to tell
    assert len(answers) <= FIRST + 20
    assert {answer.detail for answer in answers} == {"400: At most 0 image(s) may be provided"}


def test_a_server_that_comes_to_refuse_everything_does_not_fail_row_after_row() -> None:
    def behave(message: str) -> Reply:
        return completion("A dog.") if server.seen.requests <= 100 else Reply(b"no images", status=400)

    refused = 0
    with simulator(behave) as server, VllmEngine([server.address], MODEL, concurrency=8) as engine:
        with pytest.raises(HarmonError, match="refuses even what has been answered before: it answered 400: no images"):
            for answered in engine.answers(iter([question] for question in questions(5000))):
                refused += sum(answer.refusal is not None for _, answer in answered)
        assert server.seen.requests <= 100 + 20 + 8 + 1
    assert refused <= 20


def test_many_refused_rows_in_a_row_fail_each_with_the_servers_words() -> None:
    long = Reply(b"This model's maximum context length is 64 tokens", status=400)
    behave: Behaviour = lambda m: completion("A dog.") if int(m[8:]) < 50 else long  # noqa: E731
    with simulator(behave) as server, VllmEngine([server.address], MODEL, concurrency=16) as engine:
        answers = ask(engine, questions(200))
    assert sum(answer.refusal == "prompt_too_long" for answer in answers.values()) == 150
    assert answers["message 199"].detail == "400: This model's maximum context length is 64 tokens"


def test_a_question_to_try_again_elsewhere_waits_for_no_hanging_server() -> None:
    """A failed one question; B, where it would rather go, hangs with all its places taken: A is asked again."""

    def a_behaves(message: str) -> Reply:
        return Reply(b"oops", status=500) if a.seen.requests == 20 else completion("A dog.")

    with (
        simulator(a_behaves) as a,
        simulator(lambda m: completion("A dog.", after=3.0)) as b,
        VllmEngine([a.address, b.address], MODEL, concurrency=4) as engine,
    ):
        began = time.monotonic()
        by_a = 0
        for answered in engine.answers(iter([question] for question in questions(200))):
            by_a += sum(answer.endpoint == a.address for _, answer in answered)
            if by_a >= 190:
                break
        assert time.monotonic() - began < 2.5
    assert b.seen.requests <= 5


@pytest.mark.parametrize("status", [500, 502])
def test_a_server_with_nothing_but_quick_errors_is_asked_little(status: int) -> None:
    taken = 0

    def lots() -> Iterator[list[Question]]:
        nonlocal taken
        for question in questions(100_000):
            taken += 1
            yield [question]

    with (
        simulator(lambda m: Reply(b"cuda is gone", status=status)) as server,
        VllmEngine([server.address], MODEL, concurrency=256, patience_seconds=1.0) as engine,
        pytest.raises(HarmonError, match=f"answered {status}: cuda is gone"),
    ):
        list(engine.answers(lots()))
    assert taken <= FIRST  # the first window: what waits to be tried again keeps its place
    assert server.seen.requests - server.seen.messages[PROBE] <= 1.25 * FIRST  # a few come again in its patience
    assert server.seen.messages[PROBE] <= 40


def test_a_server_that_is_not_in_health_is_left_alone_until_it_is() -> None:
    def behave(message: str) -> Reply:
        well = server.seen.health == 200
        return completion(rewritten(message), after=0.005) if well else Reply(b"dying", status=500)

    def fall_ill() -> None:
        server.seen.health = 503

    def recover() -> None:
        asked_while_ill.append(server.seen.requests - at_fall[0])
        server.seen.health = 200

    at_fall: list[int] = []
    asked_while_ill: list[int] = []
    asked = questions(400)
    with simulator(behave) as server, VllmEngine([server.address], MODEL, concurrency=8) as engine:
        threading.Timer(0.1, lambda: (fall_ill(), at_fall.append(server.seen.requests))).start()
        threading.Timer(0.8, recover).start()
        answers = ask(engine, asked)
    assert said(answers) == texts(asked)
    assert asked_while_ill[0] <= 16


def test_rows_that_no_server_survives_fail_alone_even_where_there_are_no_others() -> None:
    behave: Behaviour = lambda m: completion("yes") if m == PROBE else Reply(b"poison", status=500)  # noqa: E731
    with simulator(behave) as server, VllmEngine([server.address], MODEL, concurrency=16) as engine:
        answers = ask(engine, questions(60))
    assert {answer.refusal for answer in answers.values()} == {"server_error"}
    assert {answer.detail for answer in answers.values()} == {"answered 500: poison"}


def test_a_picture_is_in_memory_only_while_it_is_in_flight() -> None:
    """Of 300 pictures with two faults each no more are alive than requests in flight."""
    alive = most = made = 0
    lock = threading.Lock()

    class Counted(bytes):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def paint() -> bytes:
        nonlocal alive, most, made
        with lock:
            alive, made = alive + 1, made + 1
            most = max(most, alive)
        return Counted(b"\xff\xd8")

    asked = [replace(question, image=paint) for question in questions(300)]
    oops = Reply(b"oops", status=500)
    with simulator(faulty(oops)) as server, VllmEngine([server.address], MODEL, concurrency=8) as engine:
        answers = ask(engine, asked)
    assert said(answers) == texts(asked)
    assert made >= 3 * 300  # each time anew
    assert most <= 8 + 2  # and the one that a probe shows, and the one before it


def test_an_image_that_cannot_be_had_is_not_sent() -> None:
    asked = [replace(question, image=lambda: None) for question in questions(40)]
    with simulator() as server, VllmEngine([server.address], MODEL) as engine:
        answers = ask(engine, asked)
        assert server.seen.requests == 0
    assert {(answer.refusal, answer.attempts) for answer in answers.values()} == {("unreadable_image", 0)}


def test_a_server_that_asks_to_be_left_alone_for_an_hour_is_told_of_at_once() -> None:
    busy = Reply(b"", status=503, headers=("Retry-After: 3600",))
    began = time.monotonic()
    with (
        simulator(lambda m: busy) as server,
        VllmEngine([server.address], MODEL) as engine,
        pytest.raises(HarmonError, match="is to be left alone for longer than 600 s"),
    ):
        ask(engine, questions(3))
    assert time.monotonic() - began < 5


def test_another_server_takes_over_from_one_that_asks_to_be_left_alone() -> None:
    busy = Reply(b"", status=503, headers=("Retry-After: 3600",))
    asked = questions(100)
    with simulator(lambda m: busy) as a, simulator() as b, VllmEngine([a.address, b.address], MODEL) as engine:
        answers = ask(engine, asked)
        assert a.seen.requests <= 64
    assert said(answers) == texts(asked)
