"""The embedded engine: the model's chat template, greedy, the same text in a batch as alone, images too."""

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from pipelines.errors import ConfigurationError
from pipelines.scenes import dense_caption, make_scene
from recaption.engines import Answer, Question
from recaption.language_model import language_model, sees_images
from recaption.pictures import picture
from recaption.prompt import Picture, Sampling, load_prompt
from recaption.transformers_engine import TransformersEngine
from tests.parts import need
from tests.recaption.captioned import QWEN
from tests.recaption.tiny_qwen2_vl import drawn, make_tiny_qwen2_vl

PROMPT = load_prompt("rewrite-v1")
MESSAGES = [PROMPT.message(dense_caption(make_scene(21, index, split="unseen"))) for index in range(12)]
SMALL = Picture(min_pixels=28 * 28, max_pixels=28 * 28 * 16)


def ask(
    engine: TransformersEngine,
    messages: Sequence[str],
    sampling: Sampling = PROMPT.sampling,
    images: Sequence[bytes] | None = None,
) -> list[Answer]:
    shown: Sequence[bytes | None] = images or [None] * len(messages)
    lot = [
        Question(f"{n}", 0, message, sampling, None if image is None else partial(bytes, image))
        for n, (message, image) in enumerate(zip(messages, shown, strict=True))
    ]
    (answered,) = engine.answers(iter([lot]))
    assert [question for question, _ in answered] == lot
    return [answer for _, answer in answered]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    need((QWEN / "model.safetensors").exists(), f"{QWEN} holds the tiny Qwen2.5")
    return TransformersEngine(language_model(QWEN), threads=1)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    need((QWEN / "tokenizer.json").exists(), f"{QWEN} holds the tiny Qwen2.5's tokenizer")
    model = language_model(make_tiny_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl")))
    assert sees_images(model)
    return TransformersEngine(model, threads=1)


def test_a_text_does_not_depend_on_the_batch_it_was_written_in(engine: TransformersEngine) -> None:
    together = ask(engine, MESSAGES)
    alone = [ask(engine, [message])[0] for message in MESSAGES]
    equal = sum(a.text == b.text for a, b in zip(together, alone, strict=True))
    assert equal >= len(MESSAGES) - 1  # a tie within rounding may fall either way
    assert [a.tokens_in for a in together] == [b.tokens_in for b in alone]


def test_answers_come_with_their_questions(engine: TransformersEngine) -> None:
    forward = ask(engine, MESSAGES[:8])
    backward = ask(engine, MESSAGES[7::-1])
    assert [a.tokens_in for a in forward] == [a.tokens_in for a in reversed(backward)]
    assert [a.text for a in forward] == [a.text for a in reversed(backward)]


def test_an_answer_is_cut_off_at_max_tokens(engine: TransformersEngine) -> None:
    (answer,) = ask(engine, MESSAGES[:1], PROMPT.sampling.model_copy(update={"max_tokens": 3}))
    assert (answer.finish_reason, answer.tokens_out) == ("length", 3)


def test_a_message_that_leaves_no_room_is_refused_and_the_others_are_answered(engine: TransformersEngine) -> None:
    long = PROMPT.message("A red circle lies at the left. " * 400)
    first, refused, last = ask(engine, [MESSAGES[0], long, MESSAGES[1]])
    assert (refused.text, refused.refusal) == (None, "prompt_too_long")
    assert first.text
    assert last.text


def test_the_models_own_penalties_are_not_applied(engine: TransformersEngine, tmp_path: Path) -> None:
    folder = shutil.copytree(QWEN, tmp_path / "qwen")
    shipped = json.loads((folder / "generation_config.json").read_text())
    penalties = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(shipped | penalties))
    penalised = TransformersEngine(language_model(folder), threads=1)
    assert [a.text for a in ask(penalised, MESSAGES[:4])] == [a.text for a in ask(engine, MESSAGES[:4])]


def test_a_seed_repeats_its_text_in_any_company_and_another_seed_writes_another(engine: TransformersEngine) -> None:
    def seeded(seed: int) -> Sampling:
        return Sampling(method="random", max_tokens=24, temperature=2.0, seed=seed)

    state = torch.random.get_rng_state()
    texts = [ask(engine, MESSAGES[:2], seeded(seed))[0].text for seed in (1, 2, 1)]
    assert texts[0] == texts[2] == ask(engine, MESSAGES[:1], seeded(1))[0].text
    assert texts[0] != texts[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_number_of_threads_is_put_back(engine: TransformersEngine) -> None:
    before = torch.get_num_threads()
    ask(engine, MESSAGES[:1])
    assert torch.get_num_threads() == before


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="safetensors"):
        language_model(tmp_path)


def test_images_are_seen_each_in_its_own_row_of_the_batch(seeing: TransformersEngine) -> None:
    """Pictures of several sizes in one batch give what each gives alone, and other pictures other texts."""
    sizes = [(160, 120), (300, 90), (56, 200), (160, 120)]
    images = [picture(drawn(seed, size), SMALL) or b"" for seed, size in enumerate(sizes)]
    sampling = Sampling(method="greedy", max_tokens=8)
    together = ask(seeing, ["Describe this image."] * 4, sampling, images)
    alone = [ask(seeing, ["Describe this image."], sampling, [image])[0] for image in images]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.tokens_in for a in together] == [a.tokens_in for a in alone]
    assert len({a.text for a in together}) > 1
    assert len({a.tokens_in for a in together}) > 1


def test_a_picture_at_the_stated_size_is_not_scaled_again(seeing: TransformersEngine) -> None:
    """Tokens in are those of the patches of 28 x 28 pixels that were sent."""
    sampling = Sampling(method="greedy", max_tokens=1)
    images = [picture(drawn(1, size), SMALL) or b"" for size in ((112, 112), (140, 56))]
    square, wide = (a.tokens_in or 0 for a in ask(seeing, ["?"] * 2, sampling, images))
    assert square - wide == 4 * 4 - 5 * 2


def test_an_image_for_a_model_without_eyes_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(ConfigurationError, match="sees no images"):
        ask(engine, ["Describe this image."], images=[drawn(1)])
