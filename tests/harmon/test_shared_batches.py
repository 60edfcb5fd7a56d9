"""A picture or an answer of a shared batch is the one it would be alone, whoever joins and leaves beside it."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_checkpoints import make_run

from harmon.answering import AnswerConfig
from harmon.ask import Conversation
from harmon.drawing import draw_latents
from harmon.pictures import padded_square
from harmon.prompts import padded
from harmon.sampling_config import SamplingConfig
from harmon.serving.canvases import Canvas, Canvases, Subject
from harmon.serving.speeches import Speech, Speeches
from harmon.text import IMAGE_SLOT
from harmon.trained import Trained, load

torch.set_num_threads(1)
TOLERANCE = 1e-3  # of latents of about 3: a row's float sums are rounded otherwise in another batch
HOWS = [
    SamplingConfig(ar_steps=5, diffusion_steps="4", clip_x0=3.0),
    SamplingConfig(ar_steps=3, diffusion_steps="4", clip_x0=3.0, cfg=1.0),
    SamplingConfig(ar_steps=7, diffusion_steps="6", clip_x0=3.0, cfg=5.0, cfg_schedule="linear"),
    SamplingConfig(ar_steps=4, diffusion_steps="8", diffusion_steps_last=2, clip_x0=3.0, sampler="dpm++"),
    SamplingConfig(ar_steps=6, diffusion_steps="4", clip_x0=2.0, cfg_interval=(0.4, 1.0), temperature=0.8),
    SamplingConfig(ar_steps=40, diffusion_steps="2", clip_x0=3.0),  # more steps than positions
]
QUESTIONS = ["How many circles are there?", "Why?", "What colour is the large one, and what stands beside it?"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return load(make_run(tmp_path_factory.mktemp("runs") / "run"))


def subject(trained: Trained, number: int, grid: tuple[int, int] = (4, 5)) -> Subject:
    text = trained.text
    prompt = text.generation_prompt("a circle " * (number % 4 + 1))
    return Subject(tuple(prompt), tuple(text.generation_prompt(None)), grid, number, HOWS[number % len(HOWS)])


def alone(trained: Trained, one: Subject) -> torch.Tensor:
    """As `harmon generate` draws it, in a batch of one."""
    prompts = [one.prompt] if one.sampling.cfg == 1 else [one.prompt, one.against]
    ids, mask = padded(prompts, trained.text.pad, torch.device("cpu"))
    [latents] = draw_latents(trained.model, ids, mask, one.grid, [one.seed], one.sampling.model_dump())
    return latents


def test_canvases_that_come_and_go_at_any_step_are_what_each_is_alone(trained: Trained) -> None:
    batch = Canvases(trained.model, trained.text.pad)
    subjects = [subject(trained, number) for number in range(12)]
    canvases = [Canvas(trained.model, one) for one in subjects]
    arrivals = {0: canvases[:3], 2: canvases[3:4], 3: canvases[4:9], 9: canvases[9:]}
    drawn = {}
    turn, beside = 0, set()
    while batch.rows or turn <= max(arrivals):
        if turn in arrivals:
            batch.join(arrivals[turn])
        batch.advance()
        beside.add(tuple(row.done for row in batch.rows))
        for row in [row for row in batch.rows if row.finished]:
            drawn[row] = batch.latents([row])[0]
            batch.leave([row])
        turn += 1
        if turn == 5:
            batch.leave(canvases[5:6])  # a client that went away
    assert any(len(set(steps)) > 2 for steps in beside)  # different AR steps were one pass
    assert len(drawn) == 11
    for canvas, one in zip(canvases, subjects, strict=True):
        if canvas is not canvases[5]:
            torch.testing.assert_close(drawn[canvas], alone(trained, one), atol=TOLERANCE, rtol=0)


def test_a_canvas_alone_in_its_batch_is_that_of_generate(trained: Trained) -> None:
    for number in (0, 1, 3):
        one = subject(trained, number)
        batch, canvas = Canvases(trained.model, trained.text.pad), Canvas(trained.model, one)
        batch.join([canvas])
        while not canvas.finished:
            batch.advance()
        torch.testing.assert_close(batch.latents([canvas])[0], alone(trained, one), atol=1e-4, rtol=0)


def test_a_canvas_shows_what_is_drawn_so_far_and_zeros_elsewhere(trained: Trained) -> None:
    batch, canvas = Canvases(trained.model, trained.text.pad), Canvas(trained.model, subject(trained, 0))
    batch.join([canvas])
    shares = []
    while not canvas.finished:
        batch.advance()
        shares.append(float((batch.latents([canvas]) != 0).float().mean()))
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] == 1


# -- answers -------------------------------------------------------------------------------------------------


def speech(trained: Trained, number: int, pixels: np.ndarray | None) -> Speech:
    slots = 0 if pixels is None else trained.slots(64)
    prompt = trained.text.conversation_prompt([], QUESTIONS[number % 3], slots)
    warm = number % 2 == 1
    config = AnswerConfig(max_new_tokens=4 + 3 * number, temperature=1.0 if warm else 0.0, top_p=0.9 if warm else 1.0)
    return Speech(prompt, pixels, config, number)


@pytest.mark.parametrize("shown", [True, False])
def test_speeches_that_come_and_go_are_what_each_is_alone(trained: Trained, shown: bool) -> None:
    picture = Image.linear_gradient("L").resize((50, 70)).convert("RGB")
    pixels = padded_square(picture, 64) if shown else None
    batch, speeches = Speeches(trained), [speech(trained, number, pixels) for number in range(8)]
    arrivals = {0: speeches[:2], 1: speeches[2:3], 5: speeches[3:]}
    turn = 0
    while batch.rows or turn <= max(arrivals):
        if turn in arrivals:
            batch.join(arrivals[turn])
        if turn == 7:
            batch.leave([speeches[6]])
        if batch.rows:
            batch.advance()
        turn += 1
    for number, one in enumerate(speeches):
        if number == 6:
            assert one.ending is None
            continue
        apart, fresh = Speeches(trained), speech(trained, number, pixels)
        apart.join([fresh])
        while apart.rows:
            apart.advance()
        assert (one.said, one.ending) == (fresh.said, fresh.ending)
        assert one.ending == ("length" if len(one.said) == one.config.max_new_tokens else "stop")
    if shown:
        first = speeches[0]
        said = "".join(Conversation.about(trained, picture).ask(QUESTIONS[0], first.config, seed=0))
        assert trained.text.decode(first.said) == said.strip()


def test_speeches_with_and_without_a_picture_share_a_batch(trained: Trained) -> None:
    pixels = padded_square(Image.new("RGB", (64, 64), "red"), 64)
    both, first, second = Speeches(trained), speech(trained, 2, pixels), speech(trained, 2, None)
    both.join([first, second])
    while both.rows:
        both.advance()
    for one, shown in ((first, pixels), (second, None)):
        apart, fresh = Speeches(trained), speech(trained, 2, shown)
        apart.join([fresh])
        while apart.rows:
            apart.advance()
        assert one.said == fresh.said
    assert first.said != second.said


def test_a_conversation_is_laid_out_as_in_training(trained: Trained) -> None:
    text = trained.text
    prompt = text.conversation_prompt([("What is it?", " A circle. ")], "Why?", 5)
    chat = text.chat([("What is it?", "A circle."), ("Why?", "So.")], 5).ids
    assert tuple(prompt) == chat[: len(prompt)]
    later = text.conversation_prompt([("Hello", "Hi")], "What is it?", 5, pictured=1)
    assert later.count(IMAGE_SLOT) == 5 and later.index(IMAGE_SLOT) > len(text.question_prompt("Hello", 0))


def test_a_text_of_strangers_leaves_nothing_behind(trained: Trained) -> None:
    text = trained.text.forgetting()
    assert text.generation_prompt("a circle") == trained.text.generation_prompt("a circle")
    assert text._kept is None and trained.text._kept is not None
