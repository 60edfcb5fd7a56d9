"""The server as its clients see it: OpenAI's own, unmodified, and those that mean no good."""

import base64
import concurrent.futures
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from demo_checkpoint import make_demo
from PIL import Image
from served import metrics, served, wait_until
from small_checkpoints import make_run

from harmon.answering import AnswerConfig
from harmon.ask import Conversation
from harmon.generate import draw_pictures
from harmon.picture_files import PictureRecord, read_record
from harmon.sampling_config import SamplingConfig
from harmon.serving.canvases import Canvases
from harmon.serving.server import KEY_VARIABLE, api_key, check_reach
from harmon.trained import Trained, load
from pipelines.errors import ConfigurationError

torch.set_num_threads(1)
KEY = "a-key-of-tests"
PATIENT = 120.0  # seconds: on a machine that does much else
post, get, options = (partial(one, timeout=PATIENT) for one in (httpx.post, httpx.get, httpx.options))
LONG = {"prompt": "a circle", "size": "512x512", "steps": 256, "diffusion_steps": 250}  # a minute, were it let
SECONDS = {"prompt": "a circle", "size": "128x128", "steps": 64, "diffusion_steps": 100}
WARM = AnswerConfig(max_new_tokens=12, temperature=1.0)
PICTURES, CHAT = "/v1/images/generations", "/v1/chat/completions"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return load(make_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def address(trained: Trained) -> Iterator[str]:
    with served(trained, body_bytes=100_000, body_seconds=2) as found:
        yield found


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return load(make_demo(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def client(demo: Trained) -> Iterator[openai.OpenAI]:
    with served(demo, KEY) as found, openai.OpenAI(base_url=f"{found}/v1", api_key=KEY, max_retries=0) as one:
        yield one


def png(picture: Image.Image) -> str:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return data_url(encoded.getvalue())


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def slope() -> Image.Image:
    return Image.linear_gradient("L").resize((50, 70)).convert("RGB")


def about(url: str, question: str = "What is it?") -> list[dict]:
    shown = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [shown, {"type": "text", "text": question}]}]


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Within one of 256 levels, as pictures are in batches of other sizes."""
    return ours.shape == theirs.shape and int(np.abs(ours.astype(int) - theirs).max()) <= 1


# -- OpenAI's client -----------------------------------------------------------------------------------------


def test_openais_client_asks_about_a_picture_and_hears_what_harmon_ask_says(
    client: openai.OpenAI, demo: Trained
) -> None:
    how = {"model": "harmon", "max_tokens": 12, "temperature": 1.0, "seed": 5}
    told = client.chat.completions.create(messages=about(png(slope())), **how)
    expected = "".join(Conversation.about(demo, slope()).ask("What is it?", WARM, seed=5)).strip()
    assert told.choices[0].message.content == expected
    assert told.choices[0].finish_reason in ("stop", "length")
    assert told.usage and told.usage.prompt_tokens > demo.slots(128) and 0 < told.usage.completion_tokens <= 12
    chunks = list(
        client.chat.completions.create(
            messages=about(png(slope())), stream=True, stream_options={"include_usage": True}, **how
        )
    )
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices).strip() == expected
    pieces = [one for one in chunks if one.choices and one.choices[0].delta.content]
    assert pieces and chunks[-1].usage == told.usage
    assert chunks[-2].choices[0].finish_reason == told.choices[0].finish_reason


def test_openais_client_goes_on_with_a_conversation(client: openai.OpenAI, demo: Trained) -> None:
    conversation, how = Conversation.about(demo, slope()), AnswerConfig(max_new_tokens=8)
    first = "".join(conversation.ask("What is it?", how))
    # as the client has it: the answer's text, without what surrounds it
    messages = [*about(png(slope())), {"role": "assistant", "content": first}, {"role": "user", "content": "Why?"}]
    told = client.chat.completions.create(model="harmon", messages=messages, max_tokens=8, temperature=0)
    again = client.chat.completions.create(model="harmon", messages=messages, max_completion_tokens=8)
    assert told.choices[0].message == again.choices[0].message
    warm = {"model": "harmon", "messages": messages, "max_tokens": 8, "temperature": 1.5, "top_p": 0.9}
    one, two, other = (client.chat.completions.create(seed=seed, **warm).choices[0].message for seed in (5, 5, 6))
    assert one == two != other


def test_openais_client_draws_what_harmon_generate_draws(client: openai.OpenAI, demo: Trained, tmp_path: Path) -> None:
    drawn = client.images.generate(
        model="harmon", prompt="a red circle", n=2, size="64x128", extra_body={"seed": 7, "steps": 4, "guidance": 2.0}
    )
    how = SamplingConfig(ar_steps=4, cfg=2.0, diffusion_steps="10", clip_x0=9.0)
    expected = draw_pictures(demo, ["a red circle"] * 2, [7, 8], how, size=(64, 128))
    assert drawn.data and all(
        same(pixels(one.b64_json), theirs) for one, theirs in zip(drawn.data, expected, strict=True)
    )
    file = tmp_path / "drawn.png"
    file.write_bytes(base64.b64decode(drawn.data[1].b64_json))
    record = PictureRecord(
        prompt="a red circle", seed=8, width=64, height=128, sampling=how, weights=demo.fingerprint
    )  # fmt: skip
    assert read_record(file) == record


def test_openais_client_watches_the_canvas_fill_in(client: openai.OpenAI) -> None:
    asked = {"model": "harmon", "prompt": "a red circle", "extra_body": {"seed": 7}}
    events = list(client.images.generate(stream=True, partial_images=3, **asked))
    assert [one.type for one in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [one.partial_image_index for one in events[:3]] == [0, 1, 2]
    whole = pixels(client.images.generate(**asked).data[0].b64_json)
    assert same(pixels(events[-1].b64_json), whole)
    gaps = [np.abs(pixels(one.b64_json).astype(int) - whole).mean() for one in events]
    assert gaps[0] > gaps[2] > gaps[3]


def test_openais_client_finds_the_model_and_no_other(client: openai.OpenAI, demo: Trained) -> None:
    [model] = client.models.list().data
    assert model.id == "harmon" and model.model_extra and model.model_extra["weights"] == demo.fingerprint
    assert client.models.retrieve("harmon").id == "harmon"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.images.generate(model="gpt-4", prompt="a circle")


def test_a_wrong_key_opens_nothing_but_health_and_the_page(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
        client.with_options(api_key="a-key-of-test").models.list()
    address = str(client.base_url).removesuffix("/v1/")
    for path in ("/v1/models", "/metrics", "/v1/elsewhere"):
        assert get(address + path).status_code == 401
    for path in (PICTURES, CHAT):
        assert post(address + path, json={}, headers={"Authorization": f"Basic {KEY}"}).status_code == 401
    assert get(f"{address}/health").json() == {"status": "ok"}
    assert get(address).status_code == 200


# -- requests that are refused -------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels, by its header."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


ROW = {"role": "user", "content": "Why?"}
REFUSED = {
    "no JSON": (PICTURES, b"{"),
    "a list": (PICTURES, b"[]"),
    "deep": (CHAT, b'{"messages":' + b"[" * 20_000),
    "not UTF-8": (PICTURES, b'{"prompt": "\xff\xfe"}'),
    "half a letter": (PICTURES, b'{"prompt": "\\ud800"}'),
    "no prompt": (PICTURES, {}),
    "no number": (PICTURES, {"prompt": "a", "n": "many"}),
    "unknown field": (PICTURES, {"prompt": "a", "stepps": 3}),
    "NaN": (PICTURES, b'{"prompt": "a", "guidance": NaN}'),
    "no pictures": (PICTURES, {"prompt": "a", "n": 0}),
    "too many": (PICTURES, {"prompt": "a", "n": 9}),
    "odd size": (PICTURES, {"prompt": "a", "size": "65x64"}),
    "no size": (PICTURES, {"prompt": "a", "size": "large"}),
    "huge": (PICTURES, {"prompt": "a", "size": "65536x65536"}),
    "steps": (PICTURES, {"prompt": "a", "steps": 10**9}),
    "diffusion steps": (PICTURES, {"prompt": "a", "diffusion_steps": 1000}),
    "a link wanted": (PICTURES, {"prompt": "a", "response_format": "url"}),
    "long prompt": (PICTURES, {"prompt": "circle " * 7000}),
    "very long prompt": (PICTURES, {"prompt": "a" * 60_000}),
    "negative without guidance": (PICTURES, {"prompt": "a", "negative_prompt": "b", "guidance": 1}),
    "other model": (PICTURES, {"prompt": "a", "model": "dall-e-3"}),
    "no messages": (CHAT, {"messages": []}),
    "answer last": (CHAT, {"messages": [ROW, {"role": "assistant", "content": "So."}]}),
    "unknown role": (CHAT, {"messages": [{"role": "tool", "content": "x"}]}),
    "cold": (CHAT, {"messages": [ROW], "temperature": -1}),
    "tools": (CHAT, {"messages": [ROW], "tools": [{"type": "function"}]}),
    "stops": (CHAT, {"messages": [ROW], "stop": "."}),
    "several": (CHAT, {"messages": [ROW], "n": 2}),
    "too long an answer": (CHAT, {"messages": [ROW], "max_tokens": 2_000}),
    "elsewhere": (CHAT, {"messages": about("http://169.254.169.254/latest/meta-data")}),
    "a file": (CHAT, {"messages": about("file:///etc/passwd")}),
    "no base64": (CHAT, {"messages": about("data:image/png;base64,%%%%")}),
    "no picture": (CHAT, {"messages": about(data_url(b"<html>"))}),
    "half a picture": (CHAT, {"messages": about(data_url(bomb()[:30]))}),
    "bomb": (CHAT, {"messages": about(data_url(bomb()))}),
    "two pictures": (CHAT, {"messages": [{"role": "user", "content": about(png(slope()))[0]["content"] * 2}]}),
    "assistant's picture": (CHAT, {"messages": [ROW, about(png(slope()))[0] | {"role": "assistant"}, ROW]}),
}  # fmt: skip


def test_a_refused_request_is_told_why_and_its_neighbours_suffer_nothing(address: str) -> None:
    asked = {"prompt": "a red circle", "seed": 3, "steps": 64, "diffusion_steps": 100}
    expected = pixels(post(address + PICTURES, json=asked).json()["data"][0]["b64_json"])
    with concurrent.futures.ThreadPoolExecutor() as threads:
        neighbour = threads.submit(post, address + PICTURES, json=asked)
        for name, (path, body) in REFUSED.items():
            content = body if isinstance(body, bytes) else json.dumps(body)
            answer = post(address + path, content=content, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, name
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith("."), name
            assert len(error["message"]) < 400, name
        assert same(pixels(neighbour.result().json()["data"][0]["b64_json"]), expected)
    assert get(f"{address}/health").status_code == 200


def test_bodies_too_large_too_slow_or_of_another_kind_are_refused(address: str) -> None:
    sent = {"url": address + PICTURES, "headers": {"Content-Type": "application/json"}}
    large = b'{"prompt": "' + b"a" * 200_000 + b'"}'
    assert post(content=large, **sent).status_code == 413
    assert post(content=(large[at : at + 1000] for at in range(0, len(large), 1000)), **sent).status_code == 413
    assert post(address + PICTURES, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        head = (
            f"POST {PICTURES} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
        )
        slow.sendall(head.encode() + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert get(address + PICTURES).status_code == 405
    assert get(f"{address}/v2").status_code == 404


def test_bodies_in_hand_are_bounded_together(trained: Trained) -> None:
    with served(trained, held_bytes=1000) as address:
        answer = post(address + PICTURES, json={"prompt": "a" * 2000})
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert post(address + PICTURES, json={"prompt": "a"}).status_code == 200


def test_without_a_key_a_page_from_elsewhere_is_answered_nothing(address: str) -> None:
    assert get(f"{address}/v1/models", headers={"Host": "rebound.example"}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert get(f"{address}/v1/models", headers={"Host": host}).status_code == 200
    asked = options(address + PICTURES, headers={"Origin": "http://other.example"})
    assert asked.status_code == 405 and "access-control-allow-origin" not in asked.headers


# -- sharing -------------------------------------------------------------------------------------------------


def test_many_clients_share_batches_and_each_gets_its_own_picture(trained: Trained) -> None:
    def draw(address: str, seed: int) -> np.ndarray:
        asked = {"prompt": f"{seed} circles", "seed": seed, "steps": 4 + seed % 5}
        answer = post(address + PICTURES, json=asked).raise_for_status()
        return pixels(answer.json()["data"][0]["b64_json"])

    with served(trained, pictures=8) as address:
        alone = [draw(address, seed) for seed in range(4)]
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            together = list(threads.map(draw, [address] * 16, range(16)))
        counted = metrics(address)
    assert all(same(*pair) for pair in zip(alone, together))
    assert not same(together[0], together[1])
    steps = counted['harmon_batch_rows_count{kind="draw"}']
    assert counted['harmon_batch_rows_sum{kind="draw"}'] / steps > 1.5
    assert counted['harmon_jobs_total{how="done",kind="draw"}'] == counted["harmon_pictures_total"] == 20
    assert counted['harmon_waiting{kind="draw"}'] == counted['harmon_running{kind="draw"}'] == 0


def test_a_full_queue_is_told_when_to_come_again(trained: Trained) -> None:
    with served(trained, pictures=1, queue=1) as address, concurrent.futures.ThreadPoolExecutor() as threads:
        two = [threads.submit(post, address + PICTURES, json=SECONDS) for _ in range(2)]
        wait_until(lambda: metrics(address)['harmon_waiting{kind="draw"}'] == 1)
        answer = post(address + PICTURES, json=LONG)
        assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 60
        assert post(address + CHAT, json={"messages": [ROW], "max_tokens": 2}).status_code == 200
        assert [one.result().status_code for one in two] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(trained: Trained, stream: bool) -> None:
    with served(trained, pictures=1, queue=0) as address:
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.stream(
                "POST", address + PICTURES, json=LONG | {"stream": stream}, timeout=httpx.Timeout(PATIENT, read=0.5)
            ) as one,
        ):
            one.read()
        wait_until(lambda: metrics(address)['harmon_jobs_total{how="cancelled",kind="draw"}'] == 1, 20)
        assert metrics(address)['harmon_running{kind="draw"}'] == 0
        assert post(address + PICTURES, json={"prompt": "a"}).status_code == 200


def test_work_beyond_the_deadline_is_stopped(trained: Trained) -> None:
    with served(trained, deadline=0.2, pictures=1, queue=0) as address:
        answer = post(address + PICTURES, json=LONG)
        assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
        told = post(address + PICTURES, json=LONG | {"stream": True})
        while told.status_code == 429:  # the first is dropped at its next step
            told = post(address + PICTURES, json=LONG | {"stream": True})
        last = json.loads(told.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == "deadline_exceeded"


def test_an_error_of_one_batch_is_told_and_the_server_goes_on(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Canvases.advance

    def broken(batch: Canvases) -> None:
        monkeypatch.setattr(Canvases, "advance", sound)
        raise RuntimeError("out of memory")

    with served(trained) as address:
        monkeypatch.setattr(Canvases, "advance", broken)
        answer = post(address + PICTURES, json={"prompt": "a"})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "failed"
        assert "memory" not in answer.text
        assert post(address + PICTURES, json={"prompt": "a"}).status_code == 200
        assert metrics(address)['harmon_jobs_total{how="failed",kind="draw"}'] == 1


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "serve", str(make_run(tmp_path / "run")), "--port", "0"]
    with subprocess.Popen([*command, "--limit", "count=1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found, process.stderr.read()
        wait_until(lambda: _answers(found[0]))
        assert post(found[0] + PICTURES, json={"prompt": "a", "n": 2}).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _answers(address: str) -> bool:
    try:
        return get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_that_others_reach_wants_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match="can be used by everybody"):
        check_reach("0.0.0.0", None, open_to_all=False)
    check_reach("127.0.0.1", None, open_to_all=False)
    check_reach("0.0.0.0", None, open_to_all=True)
    file = tmp_path / "key"
    for bad in ("", "two words", "schlüssel"):
        file.write_text(bad)
        with pytest.raises(ConfigurationError, match="not one word of ASCII"):
            api_key(file)
    file.write_text("word\n")
    assert api_key(file) == "word" and api_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, "other")
    assert api_key(None) == "other"
