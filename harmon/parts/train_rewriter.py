"""Trains the demo's tiny Qwen2.5, which rewrites captions and is the language model that Harmon starts from.

Its first task is the paper's: the rewriting prompt (appendix A1.2.2) about a dense caption, put through the
chat template as a chat server puts it, is answered by the short caption. Other rows are, in Harmon's form of the
template, talks about a caption and generation prompts: Qwen2.5 answers questions about a text long before
Harmon shows it pictures, and so must its stand-in.

    python -m harmon.parts.train_rewriter             trains and writes harmon/parts/demo/qwen
    python -m harmon.parts.train_rewriter --measure   prints how many of 500 unseen rewrites name every object
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from harmon.parts.train_tokenizer import QWEN_FOLDER, REWRITING_PROMPT, SYSTEM_TURN
from pipelines.scenes import (
    Scene,
    class_name,
    conversation,
    dense_caption,
    make_scene,
    names_every_object,
    short_caption,
)

SEED = 1
SHORT_STEPS = 2800
FULL_STEPS = 800
"""Train steps without and then with the fixed instruction. Without, its tokens are left out and their positions
kept, which halves the work: the model learns the task first, and then to look past the instruction."""

REWRITING_STEPS = SHORT_STEPS + FULL_STEPS
TALK_STEPS = 3000
"""Train steps at the end, with a schedule of their own, in which most rows are talks about captions."""

STEPS = REWRITING_STEPS + TALK_STEPS
BATCH = 32
POOL = 2048
"""Rows drawn at once and sorted by length into batches, so that little padding is computed."""

SAVED_EVERY = 200
LEARNING_RATE, TALK_RATE = 2e-3, 1e-3
WARM_UP = 150
CAPTION_WEIGHT = 0.1
"""Loss weight of a token of the dense caption, beside 1 for a token of the answer."""

OTHER_SHARE, LAST_OTHER_SHARE = 0.15, 0.8
"""Share of rows that are talks and generation prompts, before and in the last part."""

TALK_SHARE = 0.85
"""Share of talks among those; the rest are generation prompts."""

MEASURED_SCENES = 500

LANGUAGE_MODEL = {
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.07,
    "attention_dropout": 0.0,
}
"""Qwen2.5's architecture at 1.4 million parameters. The wide initialisation is what lets it learn to copy in
minutes."""


@dataclass(frozen=True)
class Row:
    """Token ids of one text, the loss weight of each as a target, and which to leave out in the first
    part."""

    ids: list[int]
    weights: list[float]
    fixed: list[bool]


Drawn = tuple[list[int], list[int], list[float]]
"""Ids, positions and weights of the part of a row that is trained on."""


def user_turn(prompt: str, system: bool) -> str:
    """The prompt as a chat up to the answer; Qwen2.5's template adds the system turn, Harmon's leaves it
    out."""
    opening = f"<|im_start|>system\n{SYSTEM_TURN}<|im_end|>\n" if system else ""
    return f"{opening}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def rewriting_row(tokenizer: PreTrainedTokenizerBase, scene: Scene, random: Random) -> Row:
    """A rewriting request and its answer; some prompts drop the caption's own full stop before the
    prompt's."""
    dense = dense_caption(scene)
    dense = dense if random.random() < 0.5 else dense.removesuffix(".")
    before, after = user_turn(REWRITING_PROMPT, system=True).split("<caption>")
    parts = [before, f" {dense}", after, f"{short_caption(scene)}<|im_end|>"]
    head, told, instruction, answer = tokenizer([before.removesuffix(" "), *parts[1:]])["input_ids"]
    return Row(
        [*head, *told, *instruction, *answer],
        [0.0] * len(head) + [CAPTION_WEIGHT] * len(told) + [0.0] * len(instruction) + [1.0] * len(answer),
        [True] * (len(head) - 2)
        + [False] * (2 + len(told))
        + [True] * (len(instruction) - 4)
        + [False] * (4 + len(answer)),
    )


def other_row(tokenizer: PreTrainedTokenizerBase, scene: Scene, random: Random) -> Row:
    """A talk in words, or a prompt to generate an image, both in Harmon's form of the template."""
    if random.random() < TALK_SHARE:
        return talk_row(tokenizer, scene, random)
    caption = class_name(scene) if len(scene.objects) == 1 and random.random() < 0.5 else short_caption(scene)
    (ids,) = tokenizer([user_turn(f"Generate an image: {caption}", system=False)])["input_ids"]
    return Row(ids, [CAPTION_WEIGHT * 2] * len(ids), [False] * len(ids))


def talk_row(tokenizer: PreTrainedTokenizerBase, scene: Scene, random: Random) -> Row:
    """A caption, dense or short, and all questions of the scene's conversation with their answers."""
    ids: list[int] = []
    weights: list[float] = []
    told = f"{dense_caption(scene) if random.random() < 0.7 else short_caption(scene)} "
    for asked in conversation(scene):
        turn = user_turn(f"{told}{asked.question}", system=False)
        question, answer = tokenizer([f"\n{turn}" if ids else turn, f"{asked.answer}<|im_end|>"])["input_ids"]
        ids += [*question, *answer]
        weights += [CAPTION_WEIGHT / 2 if told else 0.0] * len(question) + [1.0] * len(answer)
        told = ""
    return Row(ids, weights, [False] * len(ids))


def batches(tokenizer: PreTrainedTokenizerBase, first: int) -> Iterator[list[Drawn]]:
    """The batches of the train steps from `first` on, each from scenes never drawn before."""
    for number in range(first * BATCH // POOL, -(-STEPS * BATCH // POOL)):
        random, rows = Random(f"{SEED}/{number}"), []
        for scene in (make_scene(SEED, number * POOL + i) for i in range(POOL)):
            last = (number + 1) * POOL > REWRITING_STEPS * BATCH
            make = other_row if random.random() < (LAST_OTHER_SHARE if last else OTHER_SHARE) else rewriting_row
            row = make(tokenizer, scene, random)
            kept = [i for i, fixed in enumerate(row.fixed) if number * POOL >= SHORT_STEPS * BATCH or not fixed]
            rows.append(([row.ids[i] for i in kept], kept, [row.weights[i] for i in kept]))
        rows.sort(key=lambda row: len(row[0]))
        pool = [rows[start : start + BATCH] for start in range(0, POOL, BATCH)]
        random.shuffle(pool)
        step = number * POOL // BATCH
        yield from pool[max(0, first - step) : STEPS - step]


def batch_loss(model: Qwen2ForCausalLM, batch: Sequence[Drawn]) -> torch.Tensor:
    """Weighted mean cross entropy of the batch; logits are computed at weighted targets only."""
    longest = max(len(ids) for ids, _, _ in batch)
    ids, positions, weights = (
        torch.tensor([list(row[part]) + [0] * (longest - len(row[part])) for row in batch]) for part in range(3)
    )
    hidden = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)[0]
    weights = weights[:, 1:]
    aimed = weights > 0
    logits = model.lm_head(hidden[:, :-1][aimed])
    losses = functional.cross_entropy(logits, ids[:, 1:][aimed], reduction="none")
    return (losses * weights[aimed]).sum() / weights.sum()


def rate(step: int) -> float:
    """The learning rate at `step`: in either schedule linear warm-up, then a cosine down to a hundredth."""
    peak, step, steps = (
        (LEARNING_RATE, step, REWRITING_STEPS)
        if step < REWRITING_STEPS
        else (TALK_RATE, step - REWRITING_STEPS, TALK_STEPS)
    )
    done = max(0.0, (step - WARM_UP) / (steps - WARM_UP))
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def initial(folder: Path) -> Qwen2ForCausalLM:
    """Fresh weights, for the tokenizer in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end, padding = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen2Config(**LANGUAGE_MODEL, bos_token_id=None, eos_token_id=end, pad_token_id=padding)
    model = Qwen2ForCausalLM(config)
    model.generation_config.update(eos_token_id=[end, padding], pad_token_id=padding, do_sample=False)
    return model


def train(folder: Path, first: int) -> None:
    """Trains from step `first` on (0: from scratch; otherwise from the folder's weights, with fresh moments).

    The folder's weights are written every SAVED_EVERY steps, each time with the accuracy so far.
    """
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32) if first else initial(folder)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    started = time.monotonic()
    for step, batch in enumerate(batches(tokenizer, first), first):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = batch_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {loss.item():.4f} after {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % SAVED_EVERY == 0:
            save(model, folder)
            print(f"step {step + 1} right {measure(folder, 100):.3f} of 100", flush=True)
    print(f"trained steps {first} to {STEPS} in {time.monotonic() - started:.0f} s", flush=True)


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Writes config, generation config and weights, each file appearing whole."""
    fresh = folder.with_name(f"{folder.name}.writing")
    model.save_pretrained(fresh)
    for path in fresh.iterdir():
        path.replace(folder / path.name)
    fresh.rmdir()


def rewrites(folder: Path, scenes: Sequence[Scene], batch: int = 50) -> list[str]:
    """Greedy rewrites of the scenes' dense captions, through the chat template as a chat server applies
    it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [REWRITING_PROMPT.replace("<caption>", dense_caption(scene)) for scene in scenes]
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + batch]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        texts += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def measure(folder: Path, number: int, exact: bool = False) -> float:
    """Share of `number` unseen scenes whose rewrite names every object (exact: equals the short caption)."""
    scenes = [make_scene(SEED, index, split="unseen") for index in range(number)]
    texts = rewrites(folder, scenes)
    pairs = zip(scenes, texts, strict=True)
    right = [text == short_caption(s) if exact else names_every_object(s, text) for s, text in pairs]
    return sum(right) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=QWEN_FOLDER, help="holds the tokenizer, receives the model")
    parser.add_argument("--from-step", type=int, default=0, help="go on from this step with the folder's weights")
    parser.add_argument("--measure", action="store_true", help="only measure the weights in the folder")
    arguments = parser.parse_args()
    if not arguments.measure:
        train(arguments.folder, arguments.from_step)
    named = measure(arguments.folder, MEASURED_SCENES)
    equal = measure(arguments.folder, MEASURED_SCENES, exact=True)
    print(json.dumps({"scenes": MEASURED_SCENES, "every_object_named": named, "equal_to_short_caption": equal}))


if __name__ == "__main__":
    main()
