"""Answers token by token: greedy or drawn, for a batch of prompts.

Shape letters: B prompts, L prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from harmon.model.harmon import Harmon
from harmon.sampling import answer_logits, evaluating
from harmon.seeds import stream

QWEN_EOS = 151645  # <|im_end|> of Qwen2.5's tokenizer


class AnswerConfig(BaseModel):
    """How answers are found. The defaults are the release's: greedy, at most 1,024 tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=1024, ge=0)
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most likely token; above it, tokens are drawn from the logits divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Drawn from the fewest tokens that together have this probability."""


GREEDY = AnswerConfig()


@torch.no_grad()
def speak(
    model: Harmon,
    latents: Tensor | None,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: AnswerConfig,
    *,
    seeds: Sequence[int] | None = None,
    eos_ids: Collection[int] = (QWEN_EOS,),
) -> Iterator[list[int | None]]:
    """The next token of each prompt, time after time; None for an answer that has ended.

    Ends before all would be None. Prompts [B, L] as `harmon.sampling.answer_logits` takes them. `seeds` (None:
    0 each) holds one number an answer, which then depends on its prompt and its seed, not on the batch.
    """
    generators = [
        torch.Generator().manual_seed(stream(seed, "answer") % 2**63) for seed in seeds or [0] * len(input_ids)
    ]
    speaking = [True] * len(input_ids)
    with evaluating(model):
        logits_of = answer_logits(model, latents, input_ids, attention_mask)
        chosen_B: Tensor | None = None
        for _ in range(config.max_new_tokens):
            logits_BV = next(logits_of) if chosen_B is None else logits_of.send(chosen_B)
            chosen_B = choose(logits_BV, config, generators)
            tokens = chosen_B.tolist()
            speaking = [open_ and token not in eos_ids for open_, token in zip(speaking, tokens)]
            if not any(speaking):
                return
            yield [token if open_ else None for open_, token in zip(speaking, tokens)]


def choose(logits_BV: Tensor, config: AnswerConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """One token a row, int64 [B]: the most likely, or drawn with the row's own generator."""
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    warped_BV = TemperatureLogitsWarper(config.temperature)(None, logits_BV)
    if config.top_p < 1:
        warped_BV = TopPLogitsWarper(config.top_p)(None, warped_BV)
    chances_BV = warped_BV.softmax(-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(chances_BV, generators)]
    return torch.cat(drawn).to(logits_BV.device)


def answer(
    model: Harmon,
    latents: Tensor | None,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    config: AnswerConfig = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
    eos_ids: Collection[int] = (QWEN_EOS,),
) -> list[list[int]]:
    """Whole answers: the new ids of each prompt, up to but without the first of `eos_ids`.

    Prompts as `answer_logits` takes them; no `attention_mask` means no padding. `seeds` as `speak` takes them.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    answers: list[list[int]] = [[] for _ in input_ids]
    for tokens in speak(model, latents, input_ids, mask, config, seeds=seeds, eos_ids=eos_ids):
        for said, token in zip(answers, tokens):
            if token is not None:
                said.append(token)
    return answers
