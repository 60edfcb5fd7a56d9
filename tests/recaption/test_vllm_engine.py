"""The client of a chat server: order kept, load bounded, transient faults retried, lasting ones told at once."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipelines.errors import HarmonError
from recaption.prompt import Sampling
from recaption.vllm_engine import VllmEngine

SAMPLING = Sampling(method="greedy", max_tokens=8)
Reply = tuple[int, bytes]  # status and body


def completion(text: str) -> Reply:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, json.dumps({"choices": [choice], "usage": usage}).encode()


@contextmanager
def chat_server(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[str]:
    """A loopback server that answers each chat completion request with `reply(body)`; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            status, body = reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def said(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"]
    return text


def test_answers_come_in_the_order_of_the_messages_and_load_is_bounded() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def reply(body: dict[str, Any]) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.001 * (7 - int(said(body)) % 7))
        with lock:
            now -= 1
        return completion(said(body).upper())

    with chat_server(reply) as address, VllmEngine([address], "tiny", concurrency=5) as engine:
        answers = engine.answer([f"{number}" for number in range(60)], SAMPLING)
    assert [answer.text for answer in answers] == [f"{number}" for number in range(60)]
    assert 2 <= most <= 5


def test_a_request_is_greedy_without_penalties() -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> Reply:
        bodies.append(body)
        return completion("x")

    with chat_server(reply) as address, VllmEngine([address], "tiny") as engine:
        engine.answer(["hello"], SAMPLING)
    assert bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            "temperature": 0.0,
            "repetition_penalty": 1.0,
        }
    ]


@pytest.mark.parametrize("fault", [(429, b"slow down"), (503, b""), (200, b"{not json"), (200, b'{"choices": []}')])
def test_a_transient_fault_is_tried_again(fault: Reply) -> None:
    seen: list[str] = []

    def reply(body: dict[str, Any]) -> Reply:
        seen.append(said(body))
        return fault if len(seen) < 3 else completion("at last")

    with chat_server(reply) as address, VllmEngine([address], "tiny") as engine:
        (answer,) = engine.answer(["hello"], SAMPLING)
    assert (answer.text, answer.attempts, seen) == ("at last", 3, ["hello"] * 3)


def test_endpoints_share_the_work() -> None:
    counts = {"a": 0, "b": 0}

    def counting(name: str) -> Callable[[dict[str, Any]], Reply]:
        def reply(body: dict[str, Any]) -> Reply:
            counts[name] += 1
            return completion(name)

        return reply

    with chat_server(counting("a")) as a, chat_server(counting("b")) as b, VllmEngine([a, b], "tiny") as engine:
        engine.answer(["hello"] * 10, SAMPLING)
    assert counts == {"a": 5, "b": 5}


def test_a_dead_server_is_told_of_within_seconds() -> None:
    with chat_server(lambda body: completion("")) as address:
        pass
    began = time.monotonic()
    with VllmEngine([address], "tiny") as engine, pytest.raises(HarmonError, match="accepts no connection"):
        engine.answer(["hello"] * 40, SAMPLING)
    assert time.monotonic() - began < 10


def test_a_server_that_stays_busy_is_given_up_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recaption.vllm_engine._FIRST_WAIT", 0.001)
    given_up = pytest.raises(HarmonError, match=r"answered 503 \(tried 6 times\)")
    with chat_server(lambda body: (503, b"")) as address, VllmEngine([address], "tiny") as engine, given_up:
        engine.answer(["hello"], SAMPLING)


def test_a_wrong_model_name_stops_at_once_with_the_servers_words() -> None:
    missing = json.dumps({"error": {"message": "The model `tiny` does not exist."}}).encode()
    stopped = pytest.raises(HarmonError, match="does not exist")
    with chat_server(lambda body: (404, missing)) as address, VllmEngine([address], "tiny") as engine, stopped:
        engine.answer(["hello"], SAMPLING)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [("maximum context length is 64 tokens", "prompt_too_long"), ("no such thing", "refused_by_server")],
)
def test_a_refused_message_fails_alone(words: str, refusal: str) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return (400, words.encode()) if said(body) == "bad" else completion("fine")

    with chat_server(reply) as address, VllmEngine([address], "tiny") as engine:
        good, bad, last = engine.answer(["good", "bad", "good"], SAMPLING)
    assert (good.text, bad.text, last.text) == ("fine", None, "fine")
    assert bad.refusal == refusal
