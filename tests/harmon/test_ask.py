"""Answers: greedy or drawn, alone or in batches, in one turn or many."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_checkpoints import make_run

from flows.cli import main
from flows.model_commands import ask
from harmon.answering import AnswerConfig, answer, choose
from harmon.ask import Conversation, answer_questions, read_picture
from harmon.pictures import padded_square
from harmon.prompts import padded
from harmon.trained import Trained, load
from pipelines.errors import ConfigurationError

torch.set_num_threads(1)
GREEDY = AnswerConfig(max_new_tokens=6)
WARM = AnswerConfig(max_new_tokens=6, temperature=1.5, top_p=0.9)
QUESTIONS = ["What is it?", "How many objects are there in this picture?", "Is there a red cross?"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def trained(run: Path) -> Trained:
    return load(run)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "slope.png"
    Image.linear_gradient("L").resize((50, 70)).convert("RGB").save(file)
    return file


def harmon(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.mark.parametrize("config", [GREEDY, WARM])
def test_an_answer_depends_on_its_question_and_seed_alone(
    trained: Trained, picture: Path, config: AnswerConfig
) -> None:
    shown = [read_picture(picture)] * 3
    together = answer_questions(trained, shown, QUESTIONS, config=config, seeds=[1, 2, 3])
    assert together == answer_questions(trained, shown, QUESTIONS, config=config, seeds=[1, 2, 3], batch=1)
    alone = answer_questions(trained, shown[:1], QUESTIONS[1:2], config=config, seeds=[2])
    assert alone == together[1:2]


def test_drawn_answers_differ_by_seed_and_greedy_ones_do_not(trained: Trained, picture: Path) -> None:
    shown = [read_picture(picture)] * 4
    same = answer_questions(trained, shown, QUESTIONS[:1] * 4, config=GREEDY, seeds=[1, 2, 3, 4])
    drawn = answer_questions(trained, shown, QUESTIONS[:1] * 4, config=WARM, seeds=[1, 2, 3, 4])
    assert len(set(same)) == 1 and len(set(drawn)) > 1


def test_a_streamed_answer_is_the_whole_one_in_pieces(trained: Trained, picture: Path) -> None:
    shown = read_picture(picture)
    for config in (GREEDY, WARM):
        pieces = list(Conversation.about(trained, shown).ask(QUESTIONS[0], config, seed=2))
        whole = answer_questions(trained, [shown], QUESTIONS[:1], config=config, seeds=[2])
        assert "".join(pieces).strip() == whole[0]
        assert len(pieces) > 1


def test_the_second_turn_reads_the_first(trained: Trained, picture: Path) -> None:
    text, shown = trained.text, read_picture(picture)
    conversation = Conversation.about(trained, shown)
    first = list(conversation.ask(QUESTIONS[0], GREEDY))
    said = list(conversation.said)
    second = "".join(conversation.ask(QUESTIONS[1], GREEDY)).strip()
    asked = text.question_prompt(QUESTIONS[0], trained.slots(64))
    assert first and said[: len(asked)] == asked and said[-1] == text.eos
    prompt = [*said, *text.newline, *text.question_prompt(QUESTIONS[1], 0)]
    ids, mask = padded([prompt], text.pad, torch.device("cpu"))
    latents = trained.autoencoder.encode(torch.from_numpy(padded_square(shown, 64)).unsqueeze(0))
    [expected] = answer(trained.model, latents, ids, mask, GREEDY, eos_ids=(text.eos,))
    assert second == text.decode(expected)
    # the layout of a training chat of two turns
    reply = tuple(said[len(asked) : -1])
    chat = text.chat([(QUESTIONS[0], "x"), (QUESTIONS[1], "y")], trained.slots(64)).ids
    x, y = text.chat([("q", "x")], 0).ids[-2:-1], text.chat([("q", "y")], 0).ids[-2:]
    assert [*said[: -1 - len(reply)], *x, text.eos, *prompt[len(said) :], *y] == list(chat)


def test_the_end_of_a_long_question_is_read(trained: Trained) -> None:
    ids = trained.text.question_prompt(f"{'Look well. ' * 400}How many?", 3)
    assert "How many?" in trained.text.tokenizer.decode([token for token in ids if token >= 0][-20:])


def test_a_conversation_that_outgrows_the_model_is_refused(trained: Trained, picture: Path) -> None:
    long = AnswerConfig(max_new_tokens=40_000)
    with pytest.raises(ConfigurationError, match="exceed the 32768 that the model reads"):
        list(Conversation.about(trained, read_picture(picture)).ask("What?", long))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_a_drawn_token_is_in_the_nucleus(seed: int, top_p: float, temperature: float) -> None:
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed))
    config = AnswerConfig(temperature=temperature, top_p=top_p)
    tokens = choose(logits, config, [torch.Generator().manual_seed(seed + row) for row in range(2)])
    for chances, token in zip((logits / temperature).softmax(-1), tokens.tolist(), strict=True):
        likelier = chances[chances > chances[token]].sum().item()
        assert likelier < top_p + 1e-5


# -- the command ---------------------------------------------------------------------------------------------


def test_one_question_is_answered_as_plain_text(run: Path, picture: Path, trained: Trained) -> None:
    done = harmon("ask", run, picture, QUESTIONS[0], "--max-new-tokens", 6)
    assert done.exit_code == 0
    assert done.stdout.strip() == answer_questions(trained, [read_picture(picture)], QUESTIONS[:1], config=GREEDY)[0]


def test_an_answer_may_be_as_long_as_the_releases() -> None:
    [longest] = [one for one in ask.params if one.name == "max_new_tokens"]
    assert longest.default == AnswerConfig().max_new_tokens == 1024


def test_questions_and_pictures_are_asked_in_batches(run: Path, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "red").save(other)
    done = harmon("ask", run, picture, *QUESTIONS[:2], "--image", other, "-q", "Why?", "--max-new-tokens", 4, "--json")
    rows = json.loads(done.stdout)
    assert [(row["image"], row["question"]) for row in rows] == [
        (str(file), question) for file in (picture, other) for question in (*QUESTIONS[:2], "Why?")
    ]
    plain = harmon("ask", run, picture, *QUESTIONS[:2], "--max-new-tokens", 4)
    assert plain.stdout.splitlines()[0] == f"{picture}: {QUESTIONS[0]}"


def test_a_chat_reads_questions_from_stdin_or_arguments(run: Path, picture: Path) -> None:
    how = ["--chat", "--max-new-tokens", 4, "--json"]
    typed = harmon("ask", run, picture, *how, stdin=f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n")
    named = harmon("ask", run, picture, *QUESTIONS[:2], *how)
    assert typed.exit_code == named.exit_code == 0
    assert json.loads(typed.stdout) == json.loads(named.stdout) and len(json.loads(typed.stdout)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Name at least one QUESTION"),
        (["What?", "--px", 40], "choose a multiple of 16 px"),
        (["What?", "--top-p", 0], "the options: top_p"),
        (["--chat", "--image", "x.png"], "--chat is about one picture"),
    ],
)
def test_what_cannot_be_asked_is_refused(run: Path, picture: Path, options: list[object], message: str) -> None:
    done = harmon("ask", run, picture, *options)
    assert done.exit_code == 2 and message in done.stderr


def test_what_is_no_picture_is_refused(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<html>")
    done = harmon("ask", run, page, "What is it?")
    assert done.exit_code == 2 and "cannot be read as a picture" in done.stderr
