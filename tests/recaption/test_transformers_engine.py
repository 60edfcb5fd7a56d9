"""The embedded engine: the model's chat template, greedy, the same text in a batch as alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.errors import ConfigurationError
from pipelines.scenes import dense_caption, make_scene
from recaption.language_model import language_model
from recaption.prompt import load_prompt
from recaption.transformers_engine import TransformersEngine
from tests.parts import need
from tests.recaption.captioned import QWEN

PROMPT = load_prompt("rewrite-v1")
MESSAGES = [PROMPT.message(dense_caption(make_scene(21, index, split="unseen"))) for index in range(12)]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    return TransformersEngine(language_model(QWEN), threads=1)


def test_a_text_does_not_depend_on_the_batch_it_was_written_in(engine: TransformersEngine) -> None:
    together = engine.answer(MESSAGES, PROMPT.sampling)
    alone = [engine.answer([message], PROMPT.sampling)[0] for message in MESSAGES]
    equal = sum(a.text == b.text for a, b in zip(together, alone, strict=True))
    assert equal >= len(MESSAGES) - 1  # a tie within rounding may fall either way
    assert [a.tokens_in for a in together] == [b.tokens_in for b in alone]


def test_answers_come_in_the_order_of_the_messages(engine: TransformersEngine) -> None:
    forward = engine.answer(MESSAGES[:8], PROMPT.sampling)
    backward = engine.answer(MESSAGES[7::-1], PROMPT.sampling)
    assert [a.tokens_in for a in forward] == [a.tokens_in for a in reversed(backward)]
    assert [a.text for a in forward] == [a.text for a in reversed(backward)]


def test_an_answer_is_cut_off_at_max_tokens(engine: TransformersEngine) -> None:
    short = PROMPT.sampling.model_copy(update={"max_tokens": 3})
    (answer,) = engine.answer(MESSAGES[:1], short)
    assert (answer.finish_reason, answer.tokens_out) == ("length", 3)


def test_a_message_that_leaves_no_room_is_refused_and_the_others_are_answered(engine: TransformersEngine) -> None:
    long = PROMPT.message("A red circle lies at the left. " * 400)
    first, refused, last = engine.answer([MESSAGES[0], long, MESSAGES[1]], PROMPT.sampling)
    assert (refused.text, refused.refusal) == (None, "prompt_too_long")
    assert first.text
    assert last.text


def test_the_models_own_penalties_are_not_applied(engine: TransformersEngine, tmp_path: Path) -> None:
    folder = shutil.copytree(QWEN, tmp_path / "qwen")
    shipped = json.loads((folder / "generation_config.json").read_text())
    penalties = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(shipped | penalties))
    penalised = TransformersEngine(language_model(folder), threads=1)
    assert [a.text for a in penalised.answer(MESSAGES[:4], PROMPT.sampling)] == [
        a.text for a in engine.answer(MESSAGES[:4], PROMPT.sampling)
    ]


def test_the_number_of_threads_is_put_back(engine: TransformersEngine) -> None:
    before = torch.get_num_threads()
    engine.answer(MESSAGES[:1], PROMPT.sampling)
    assert torch.get_num_threads() == before


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="safetensors"):
        language_model(tmp_path)
