"""The real vLLM server: it starts, writes what Transformers writes, and leaves nothing behind."""

import time
from pathlib import Path

import pytest

from pipelines.scenes import dense_caption, make_scene
from recaption.engines import EngineSettings, open_engine
from recaption.language_model import language_model
from recaption.prompt import load_prompt
from recaption.server import vllm_python
from tests.parts import need
from tests.recaption.captioned import QWEN
from tests.recaption.test_server import marked

CAPTIONS = 200
PROMPT = load_prompt("rewrite-v1")


@pytest.mark.slow
def test_vllm_writes_what_transformers_writes_and_ends_with_us(tmp_path: Path) -> None:
    """At least 99.5 % of the texts are equal; a tie within rounding may fall either way."""
    need(vllm_python().exists(), "vLLM's environment is there (make vllm)")
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    model = language_model(QWEN)
    messages = [PROMPT.message(dense_caption(make_scene(31, n, split="unseen"))) for n in range(CAPTIONS)]
    messages.append(PROMPT.message("A red circle lies at the left. " * 400))
    with open_engine(EngineSettings(threads=1), model, tmp_path / "none.log") as engine:
        expected = engine.answer(messages, PROMPT.sampling)
    began = time.monotonic()
    with open_engine(EngineSettings(engine="vllm"), model, tmp_path / "vllm.log") as engine:
        ready = time.monotonic()
        answers = engine.answer(messages, PROMPT.sampling)
        done = time.monotonic()
        assert marked(f"--model {model.folder}")
    print(f"ready after {ready - began:.0f} s, {len(messages) / (done - ready):.1f} requests/s")
    fields = [[(a.text, a.refusal, a.finish_reason, a.tokens_out) for a in engine] for engine in (expected, answers)]
    equal = sum(one == other for one, other in zip(*fields, strict=True))
    assert equal >= 0.995 * len(messages)
    assert [a.tokens_in for a in expected[:-1]] == [a.tokens_in for a in answers[:-1]]
    assert marked(f"--model {model.folder}") == []
