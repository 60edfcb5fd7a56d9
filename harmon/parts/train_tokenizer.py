"""Trains the demo's byte-level BPE tokenizer: Qwen2.5's special tokens and chat template over a small
vocabulary.

`python -m harmon.parts.train_tokenizer` writes tokenizer.json, tokenizer_config.json and chat_template.jinja
next to the demo's language model, so that Transformers and vLLM load one folder.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipelines.scenes import class_name, dense_caption, make_scene, questions, short_caption

QWEN_FOLDER = Path(__file__).parent / "demo" / "qwen"
VOCABULARY = 1024
SCENES = 3000
SEED = 0
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

SYSTEM_TURN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""What Qwen2.5's chat template says where a conversation brings no system turn of its own."""

REWRITING_PROMPT = (
    "Here is a detailed image description: <caption>. Rewrite it into a much shorter, vivid, and visually "
    "rich sentence (one or two sentences) that captures only the most essential elements and atmosphere of "
    "the scene. Ensure the description is concise, clear, and optimized for use with a text-to-image "
    "generation model."
)
"""The paper's rewriting prompt, appendix A1.2.2."""

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2.5's tokenizer cuts text into words before merging bytes."""

CHAT_TEMPLATE = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + SYSTEM_TURN + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""What Qwen2.5's template does with turns of plain text (its tool calls are left out)."""

PLAIN_ENGLISH = """
A photograph of a cat looking at the camera. A cup of coffee on a wooden table. An astronaut smiling in an orange
suit. Old coins in rows on a dark cloth. A rocket on its launch pad under a cloudy sky. A brick wall, a patch of
gravel, green grass and leaves. A man with a camera on a tripod in a field. A page of printed text. The moon and its
craters. A galaxy of distant stars. Cells under a microscope. A motorcycle standing in a garage. A Chinese temple by
the water with curved roofs. A bright flower with many petals in a garden. A clock in motion. A horse, a dog, a bird,
a house, a tree, a river, a mountain, a road, a car and a boat. People walking on a street in the evening. What is in
this image? Describe the picture in detail. Please answer the question with one word. How does it look? Where is it?
Who made this, when, and why? Generate an image: user, system, assistant, yes, no, none. The quick brown fox jumps
over the lazy dog; pack my box with five dozen liquor jugs. THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG 0123456789.
"""
"""Ordinary words, so that captions of photographs cost few tokens too."""


def corpus() -> Iterator[str]:
    """The texts whose frequent pairs of bytes become tokens."""
    for index in range(SCENES):
        scene = make_scene(SEED, index)
        yield from (dense_caption(scene), short_caption(scene), class_name(scene))
        yield from (text for asked in questions(scene) for text in (asked.question, asked.answer))
    for _ in range(40):
        yield from (
            "system",
            "user",
            "assistant",
            "Generate an image: red",
            SYSTEM_TURN,
            REWRITING_PROMPT,
            " ".join(PLAIN_ENGLISH.split()),
            *PLAIN_ENGLISH.split("\n"),
        )


def train() -> Tokenizer:
    """A tokenizer of at most VOCABULARY tokens that holds all 256 bytes: every text in NFC round-trips exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # Qwen2.5's
    pieces = [
        pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the files that Transformers' and vLLM's loaders look for."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 4096,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=QWEN_FOLDER, help="where the tokenizer's files go")
    folder = parser.parse_args().folder
    tokenizer = train()
    save(tokenizer, folder)
    print(f"{tokenizer.get_vocab_size()} tokens written to {folder}")


if __name__ == "__main__":
    main()
