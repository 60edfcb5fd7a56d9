"""The real vLLM server: what it writes, how often it is asked, and that it leaves nothing behind.

One server for all that ask Qwen2.5, one for Qwen2-VL. With HARMON_SOAK the counts are the full ones.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.audit import audit
from pipelines.dataset import Dataset
from pipelines.scenes import dense_caption, make_scene, names_every_object
from recaption.captions import write_captions
from recaption.engines import Answer, Engine, EngineSettings, Question, open_engine
from recaption.language_model import LanguageModel, language_model, served_model
from recaption.pictures import picture
from recaption.prompt import Picture, Sampling, load_prompt
from recaption.recaption import Recaption, with_base
from recaption.rows import Rows
from recaption.server import VllmServer, vllm_python
from recaption.vllm_engine import VllmEngine
from tests.parts import need
from tests.recaption.captioned import QWEN, run_killed, write_scenes
from tests.recaption.test_server import marked
from tests.recaption.tiny_qwen2_vl import drawn, make_tiny_qwen2_vl

pytestmark = pytest.mark.slow

CAPTIONS = 5000 if os.environ.get("HARMON_SOAK") else 200
SCENES = 500
IN_FLIGHT = 32
MARGIN = 1e-3  # log-probability between the two likeliest tokens, under which rounding may decide
PROMPT = load_prompt("rewrite-v1")


def ask(engine: Engine, questions: Sequence[Question]) -> dict[str, Answer]:
    lots = (questions[start : start + engine.batch_rows] for start in range(0, len(questions), engine.batch_rows))
    return {question.work: answer for answered in engine.answers(lots) for question, answer in answered}


def rewrites(number: int) -> list[Question]:
    messages = [PROMPT.message(dense_caption(make_scene(31, n, split="unseen"))) for n in range(number)]
    messages.append(PROMPT.message("A red circle lies at the left. " * 400))  # does not fit
    return [Question(f"{n:032x}", 0, message, PROMPT.sampling) for n, message in enumerate(messages)]


def said(answer: Answer) -> tuple[str | None, str | None, str | None, int | None]:
    return answer.text, answer.refusal, answer.finish_reason, answer.tokens_out


def requests(server: VllmServer) -> int:
    """Requests that the server has finished or seen broken off, by its own count."""
    return metric(server, "request_success_total")


def metric(server: VllmServer, name: str) -> int:
    """The sum of one of the server's counters or gauges over its labels."""
    metrics = httpx.get(f"{server.address}/metrics", trust_env=False, timeout=30).text
    return int(sum(float(n) for n in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE)))


@pytest.fixture(scope="module")
def qwen() -> LanguageModel:
    need(vllm_python().exists(), "vLLM's environment is there (make vllm)")
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    return language_model(QWEN)


@pytest.fixture(scope="module")
def server(qwen: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with VllmServer(qwen, tmp_path_factory.mktemp("vllm") / "vllm.log") as running:
        yield running
    assert marked(f"--model {qwen.folder}") == []


@pytest.fixture
def client(server: VllmServer) -> Iterator[VllmEngine]:
    with VllmEngine([server.address], server.model, IN_FLIGHT) as engine:
        yield engine


def close_call(server: VllmServer, message: str, texts: tuple[str, str]) -> bool:
    """Whether the two texts part at a token where the two likeliest were within MARGIN."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": message}],
        "max_tokens": PROMPT.sampling.max_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answered = httpx.post(f"{server.address}/v1/chat/completions", json=body, trust_env=False, timeout=60).json()
    tokens = answered["choices"][0]["logprobs"]["content"]
    alike = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    written = 0
    for token in tokens:
        written += len(token["token"])
        if written > alike:
            likeliest, second = (one["logprob"] for one in token["top_logprobs"][:2])
            return bool(likeliest - second < MARGIN)
    return False


def test_texts_are_those_of_the_same_server_asked_one_by_one(server: VllmServer, client: VllmEngine) -> None:
    questions = rewrites(CAPTIONS)
    began = time.monotonic()
    together = ask(client, questions)
    print(f"{len(questions) / (time.monotonic() - began):.1f} requests/s")
    with VllmEngine([server.address], server.model, concurrency=1) as one:
        alone = ask(one, questions)
    differ = [q for q in questions if said(together[q.work]) != said(alone[q.work])]
    assert len(differ) <= 0.005 * len(questions)
    for question in differ:
        texts = together[question.work].text or "", alone[question.work].text or ""
        assert close_call(server, question.message, texts), texts
    assert together[questions[-1].work].refusal == "prompt_too_long"


def test_texts_are_those_of_the_embedded_engine(client: VllmEngine, qwen: LanguageModel, tmp_path: Path) -> None:
    questions = rewrites(CAPTIONS)
    with open_engine(EngineSettings(threads=1), qwen, tmp_path / "none.log") as engine:
        expected = ask(engine, questions)
    answers = ask(client, questions)
    assert sum(said(answers[q.work]) == said(expected[q.work]) for q in questions) >= 0.995 * len(questions)
    counted = [(answers[q.work].tokens_in, expected[q.work].tokens_in) for q in questions[:-1]]
    assert all(one == other for one, other in counted)


def test_rewrites_by_the_server_name_every_object_of_unseen_scenes_with_its_colour(client: VllmEngine) -> None:
    answers = ask(client, rewrites(SCENES))
    right = [
        names_every_object(make_scene(31, n, split="unseen"), answers[f"{n:032x}"].text or "") for n in range(SCENES)
    ]
    print(f"{sum(right)} of {SCENES} name every object")
    assert sum(right) >= 0.95 * SCENES


def test_a_seed_writes_the_same_text_again(client: VllmEngine) -> None:
    hot = [Sampling(method="random", max_tokens=24, temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    message = rewrites(1)[0].message
    answers = ask(client, [Question(f"{n:032x}", 1, message, sampling) for n, sampling in enumerate(hot)])
    first, second, third = (answers[f"{n:032x}"].text for n in range(3))
    assert first == third != second


def test_reruns_ask_what_changed_by_the_servers_own_count(server: VllmServer, tmp_path: Path) -> None:
    rows = 5 + CAPTIONS // 2
    scenes = write_scenes(tmp_path / "scenes", shards=2, rows=rows)
    model = served_model(server.model)

    def written(prompt: Any = PROMPT, **chosen: Any) -> tuple[int, Recaption]:
        """Requests of one run, and what it was."""
        before = requests(server)
        recaption = with_base(Recaption(prompt, model, Rows(**chosen)), scenes)
        write_captions(scenes, recaption, lambda: VllmEngine([server.address], server.model, IN_FLIGHT))
        return requests(server) - before, recaption

    whole, first = written()
    assert whole == len(works(scenes, first)) <= 2 * (rows - 3)
    again, _ = written()
    assert again == 0
    strict = PROMPT.model_dump(exclude_none=True)
    strict["checks"] |= {"over_long": {"action": "reject", "words": 12}}
    strict_prompt = type(PROMPT).model_validate(strict)
    judged, second = written(strict_prompt)
    failed = works(scenes, second, "over_long")
    assert judged == len(failed) > 0  # what the new checks turn down; the rest stands
    better = PROMPT.model_copy(update={"version": "rewrite-v2", "text": PROMPT.text.replace("vivid", "plain")})
    mended, third = written(better, only="failed", base=second.group)
    assert mended == len(failed)
    assert third.group != second.group
    assert audit(scenes, deep=True).sound


def works(dataset: Dataset, recaption: Recaption, reason: str | None = None) -> set[str]:
    """What was asked for the group's rows: all of it, or that of the rows with this reason."""
    rows = dataset.whole_table(recaption.group).to_pylist()
    return {row["work"] for row in rows if row["work"] and reason in (None, row["reason"])}


def test_a_kill_in_the_middle_repeats_at_most_what_was_in_flight(server: VllmServer, tmp_path: Path) -> None:
    rows = 5 + CAPTIONS // 2
    scenes = write_scenes(tmp_path / "scenes", shards=2, rows=rows)
    before = requests(server)
    run_killed(scenes.root, server.address, server.model, IN_FLIGHT, lambda: requests(server) - before >= CAPTIONS // 3)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and metric(server, "num_requests_running"):
        time.sleep(0.2)
    recaption = Recaption(PROMPT, served_model(server.model))
    write_captions(scenes, recaption, lambda: VllmEngine([server.address], server.model, IN_FLIGHT))
    repeated = requests(server) - before - len(works(scenes, recaption))
    assert 0 <= repeated <= IN_FLIGHT
    assert audit(scenes, deep=True).sound


def test_the_batch_engine_in_a_ray_actor_writes_what_the_server_writes(
    client: VllmEngine, qwen: LanguageModel, tmp_path: Path
) -> None:
    questions = rewrites(CAPTIONS)
    with open_engine(EngineSettings(engine="vllm-offline"), qwen, tmp_path / "vllm.log") as engine:
        began = time.monotonic()
        offline = ask(engine, questions)
        print(f"offline: {len(questions) / (time.monotonic() - began):.1f} requests/s")
        assert engine.version.startswith("vllm ")
    served = ask(client, questions)
    equal = sum(said(offline[q.work]) == said(served[q.work]) for q in questions)
    assert equal >= 0.995 * len(questions)


def test_qwen2_vl_sees_what_the_embedded_engine_sees(tmp_path: Path) -> None:
    need(vllm_python().exists(), "vLLM's environment is there (make vllm)")
    modules = vllm_python().parents[1] / "lib"
    need(any(modules.glob("python3*/site-packages/torchvision")), "vLLM's environment has torchvision (make vllm)")
    model = language_model(make_tiny_qwen2_vl(tmp_path / "qwen2-vl"))
    size = Picture(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    sampling = Sampling(method="greedy", max_tokens=8)
    questions = [
        Question(f"{n:032x}", 0, "Describe this image.", sampling, partial(picture, drawn(n, (160 + 7 * n, 120)), size))
        for n in range(16)
    ]
    with open_engine(EngineSettings(threads=1), model, tmp_path / "none.log") as engine:
        expected = ask(engine, questions)
    with open_engine(EngineSettings(engine="vllm"), model, tmp_path / "vllm.log") as engine:
        assert marked(f"--model {model.folder}")
        answers = ask(engine, questions)
    assert marked(f"--model {model.folder}") == []
    assert [answers[q.work].tokens_in for q in questions] == [expected[q.work].tokens_in for q in questions]
    equal = sum(_whole(answers[q.work]) == _whole(expected[q.work]) for q in questions)
    assert equal >= len(questions) - 1
    assert len({answer.text for answer in answers.values()}) > 1


def _whole(answer: Answer) -> str:
    """The text without the start of a character that was cut off with it, which the engines show differently."""
    return (answer.text or "").rstrip("\ufffd")
