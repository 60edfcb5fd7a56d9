"""The committed parts: they load, they are small, and they do what CARDS.md says of them."""

import json
from pathlib import Path
from unicodedata import normalize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from harmon.model.autoencoder import KlAutoencoder
from harmon.model.patch_latent import PatchLatent
from harmon.parts import train_tokenizer
from harmon.parts.fidelity import fidelity
from harmon.parts.train_autoencoder import KL_FILE
from harmon.parts.train_patch_latent import PATCH_LATENT_FILE
from harmon.parts.train_rewriter import measure
from harmon.parts.train_tokenizer import QWEN_FOLDER, REWRITING_PROMPT
from recaption.prompt import load_prompt

torch.set_num_threads(1)
TOKENIZER = AutoTokenizer.from_pretrained(QWEN_FOLDER)
SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


def test_the_rewriter_names_every_object_of_unseen_scenes() -> None:
    assert measure(QWEN_FOLDER, 60) >= 0.9


def test_the_language_model_is_a_qwen2_that_ends_its_turns() -> None:
    config = json.loads((QWEN_FOLDER / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"] and config["vocab_size"] >= len(TOKENIZER)
    generation = json.loads((QWEN_FOLDER / "generation_config.json").read_text())
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]


@given(st.text())
@settings(deadline=None)
def test_every_text_round_trips_through_the_tokenizer_in_its_normal_form(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == normalize("NFC", text)


@given(st.binary())
@settings(deadline=None)
def test_bytes_that_were_decoded_with_replacement_round_trip(data: bytes) -> None:
    text = normalize("NFC", data.decode("utf-8", errors="replace"))
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens_are_one_token_each_and_words_of_scenes_too() -> None:
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", " purple", " triangle", "assistant", "yes"):
        assert len(TOKENIZER(token)["input_ids"]) == 1


def test_the_chat_template_adds_qwens_system_turn_only_where_none_is_given() -> None:
    user = {"role": "user", "content": "Hello."}
    told = {"role": "system", "content": "Be brief."}
    turn = "<|im_start|>user\nHello.<|im_end|>\n"

    def chat(*messages: dict[str, str], answer: bool = False) -> str:
        text = TOKENIZER.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        return str(text)

    assert chat(user) == SYSTEM + turn
    assert chat(user, answer=True) == f"{SYSTEM}{turn}<|im_start|>assistant\n"
    assert chat(told, user) == f"<|im_start|>system\nBe brief.<|im_end|>\n{turn}"


def test_training_the_tokenizer_again_gives_the_committed_one(tmp_path: Path) -> None:
    train_tokenizer.save(train_tokenizer.train(), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (QWEN_FOLDER / path.name).read_text()


def test_the_rewriter_was_trained_on_the_prompt_that_recaptioning_asks() -> None:
    assert load_prompt("rewrite-v1").text == REWRITING_PROMPT


@pytest.mark.parametrize("side", [64, 128])
def test_the_patch_latent_holds_colour_and_shape(side: int) -> None:
    held = fidelity(PatchLatent.from_file(PATCH_LATENT_FILE), side, 60)
    assert held.psnr > 22 and held.colour == 1.0 and held.shape > 0.9


def test_the_autoencoder_reconstructs_as_well_as_its_card_says() -> None:
    autoencoder = KlAutoencoder.from_file(KL_FILE)
    assert (autoencoder.stride, autoencoder.channels) == (16, 16)
    held = fidelity(autoencoder, 64, 60)
    assert held.psnr > 19.5 and held.colour > 0.7 and held.shape > 0.85


def test_no_committed_weights_are_larger_than_8_mb() -> None:
    files = list(QWEN_FOLDER.parent.rglob("*.safetensors"))
    assert files and all(file.stat().st_size <= 8 * 2**20 for file in files)
