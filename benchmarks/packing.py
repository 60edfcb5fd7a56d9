"""What packing saves: tokens that the language model computes for each that is needed, and CPU-seconds of a step.

python -m benchmarks.packing [--quick] [--repeats 3]

Lengths are drawn, log-normal and cut as training cuts them, since no published text is on this machine: chats of text
as instruction data has them, questions and descriptions of pictures, and prompts that are captions, dense and short.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.middle import MIDDLE, QUICK, QUICK_KL, make_model, medians
from harmon.model.autoencoder import KlConfig
from harmon.model.config import HarmonConfig
from harmon.model.harmon import Harmon
from harmon.model.packing import Segments, attend_within
from harmon.text import IGNORED, IMAGE_SLOT
from harmon.training.buckets import alike
from harmon.training.draws import mean_masked_share
from harmon.training.stage import load_stage
from pipelines.errors import HarmonError

LENGTHS = {  # median, deviation of the logarithm, least, most: tokens of text
    "text": (250, 0.8, 20, 512),
    "image2text": (110, 0.7, 20, 512),
    "text2image": (60, 0.6, 8, 128),
}
BLOCKS, ROWS, MICRO_ROWS = 200, 64, 16  # blocks that are drawn, a worker's rows of each, and of a forward pass
TIMED_ROWS, TOLERANCE = 6, 1e-4
SHALLOW = MIDDLE.model_copy(  # layers are alike: two of each tell the ratio that all would, in a third of the time
    update={
        "llm": MIDDLE.llm.model_copy(update={"num_hidden_layers": 2}),
        "mar": MIDDLE.mar.model_copy(update={"encoder_depth": 2, "decoder_depth": 2}),
    }
)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print and return tokens computed for each needed, and ratios of time; HarmonError where losses differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a toy size: whether it runs, not how fast")
    parser.add_argument("--repeats", type=int, default=3, help="turns whose median is taken")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ratios = padding()
    config, kl = (QUICK, QUICK_KL) if asked.quick else (SHALLOW, KlConfig())
    model, _, _ = make_model(config, kl)
    cases = attention_cases(config)
    for task in ("text", "image2text"):
        cases |= step_cases(model, task)
    seconds = medians(cases, asked.repeats)
    print(f"CPU-seconds of {TIMED_ROWS} chats, one thread, median of {asked.repeats}:")
    for name in ("attention", "text", "image2text"):
        ours, theirs = seconds[name], seconds[f"{name}, peer"]
        ratios[f"{name}, seconds"] = ours / theirs
        against = "one call with a mask" if name == "attention" else "padded rows"
        print(f"{name:<12} {ours:7.3f} s of {theirs:7.3f} s by {against}: {ours / theirs:.2f}x")
    return ratios


def padding() -> dict[str, float]:
    """Tokens computed for each needed, as rows come and by length, of each task at 256 px and the paper's sizes."""
    config, draw, ratios = HarmonConfig.preset("harmon-0.5b"), np.random.default_rng(0), {}
    seen = config.tokens(16, 16) * (1 - mean_masked_share(load_stage("stage2")))
    slots = {"text": 0, "image2text": 256 + config.mar.buffer_size, "text2image": round(seen) + config.mar.buffer_size}
    print(f"{ROWS} rows in micro-batches of {MICRO_ROWS}: tokens computed for each needed")
    for task in LENGTHS:
        blocks = [drawn(task, draw, ROWS) + slots[task] for _ in range(BLOCKS)]
        needed = sum(int(lengths.sum()) for lengths in blocks)
        before = sum(padded(np.split(lengths, ROWS // MICRO_ROWS)) for lengths in blocks) / needed
        after = 1.0  # chats are packed
        if task == "text2image":
            groups = [[lengths[rows] for rows in alike(lengths.tolist(), ROWS // MICRO_ROWS)] for lengths in blocks]
            after = sum(padded(group) for group in groups) / needed
        ratios |= {f"{task}, padded": before, f"{task}, packed": after}
        print(f"{task:<12} {before:.2f} as they come, {after:.2f} packed; of {needed / BLOCKS / ROWS:.0f} a row")
    return ratios


def drawn(task: str, draw: np.random.Generator, rows: int) -> np.ndarray:
    """Lengths of `rows` texts (int64)."""
    median, deviation, least, most = LENGTHS[task]
    return np.clip(draw.lognormal(np.log(median), deviation, rows), least, most).astype(np.int64)


def padded(parts: Sequence[np.ndarray]) -> int:
    """Tokens where each part is padded to its longest row."""
    return sum(len(lengths) * int(lengths.max()) for lengths in parts)


Cases = dict[str, Callable[[], object]]


def step_cases(model: Harmon, task: str) -> Cases:
    """Loss and gradients of some chats, packed and padded; both are compared once."""
    config, lengths = model.config, drawn(task, np.random.default_rng(1), TIMED_ROWS)
    side = config.mar.native_grid
    slots = side**2 + config.mar.buffer_size if task == "image2text" else 0
    ids = torch.zeros(TIMED_ROWS, slots + int(lengths.max()), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, length in enumerate(lengths.tolist()):
        ids[row, : slots + length] = torch.randint(config.llm.vocab_size, (slots + length,))
        ids[row, :slots] = IMAGE_SLOT
        answer = slice(slots + length // 4, slots + length)
        labels[row, answer] = ids[row, answer]
    latents = torch.randn(TIMED_ROWS, config.mar.latent_channels, side, side) if slots else None

    def step(packed: bool) -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = model.image_to_text_loss(latents, ids, labels, packed=packed)
        (loss.total / loss.count).backward()  # type: ignore[no-untyped-call]
        return loss.total.detach()

    ours, theirs = step(True), step(False)
    if not (ours - theirs).abs() <= TOLERANCE * theirs.abs():
        raise HarmonError(f"{task}: packed rows lose {ours.item():g} and padded ones {theirs.item():g}; mend packing.")
    return {task: lambda: step(True), f"{task}, peer": lambda: step(False)}


def attention_cases(config: HarmonConfig) -> Cases:
    """Causal attention of one layer inside each of some texts, forward and back: one after the other, or by a mask."""
    llm, lengths = config.llm, drawn("text", np.random.default_rng(1), TIMED_ROWS).tolist()
    width, total = llm.hidden_size // llm.num_attention_heads, sum(lengths)
    shapes = ((one, total, width) for one in (llm.num_attention_heads, *[llm.num_key_value_heads] * 2))
    heads = [torch.randn(1, *shape, requires_grad=True) for shape in shapes]
    segments, text = Segments.of(lengths), torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    mask = (text.unsqueeze(1) == text).tril()

    def back(out: Tensor) -> Tensor:
        out.sum().backward()  # type: ignore[no-untyped-call]
        return out

    def peer() -> Tensor:
        return back(F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True))

    return {"attention": lambda: back(attend_within(*heads, segments)), "attention, peer": peer}


if __name__ == "__main__":
    main()
