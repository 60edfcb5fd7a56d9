"""The embedded engine: a causal language model in this process, through Transformers, in greedy batches."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from recaption.engines import Answer
from recaption.language_model import LanguageModel, context_length
from recaption.prompt import Sampling


class TransformersEngine:
    """Batched greedy decoding on `device` in float32.

    Large batches amortise Python's share of each decoding step, which for a model of a million parameters is
    most of it. A batch takes as long as its longest answer, so callers should give rows of similar length
    together.
    """

    def __init__(
        self, model: LanguageModel, batch_rows: int = 256, threads: int | None = None, device: str = "cpu"
    ) -> None:
        """`threads`: how many the whole process' torch may use while it answers; None leaves it as it is."""
        self._batch_rows = batch_rows
        self._threads = threads
        self._device = device
        self._context = context_length(model)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model.folder, local_files_only=True, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model.folder, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
        self._model.to(device).eval()
        self._ends = _end_tokens(self._model, self._tokenizer)
        # Transformers fills what a generation config leaves open from the model's own, which may hold
        # penalties.
        self._model.generation_config = GenerationConfig()

    @property
    def batch_rows(self) -> int:
        return self._batch_rows

    def answer(self, messages: Sequence[str], sampling: Sampling) -> list[Answer]:
        """One answer per message; without room for `max_tokens` after it, a refusal: `prompt_too_long`."""
        started = time.perf_counter()
        prompts = [self._tokenize(message) for message in messages]
        fits = [len(prompt) + sampling.max_tokens <= self._context for prompt in prompts]
        written = iter(self._generate([p for p, fit in zip(prompts, fits, strict=True) if fit], sampling.max_tokens))
        outputs = [next(written) if fit else None for fit in fits]
        seconds = (time.perf_counter() - started) / max(1, len(messages))
        return [self._as_answer(p, o, seconds) for p, o in zip(prompts, outputs, strict=True)]

    def _tokenize(self, message: str) -> list[int]:
        chat = [{"role": "user", "content": message}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Token ids written after each prompt, up to and with the one that ended it."""
        if not prompts:
            return []
        width = max(map(len, prompts))
        pad = self._ends[0]
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=list(self._ends),
            pad_token_id=pad,
            use_cache=True,
        )
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(self._threads or before)
            with torch.inference_mode():
                rows = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        finally:
            torch.set_num_threads(before)
        return [self._until_end(row) for row in rows[:, width:].tolist()]

    def _until_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens) - 1)
        return tokens[: end + 1]

    def _as_answer(self, prompt: list[int], output: list[int] | None, seconds: float) -> Answer:
        if output is None:
            return Answer(None, "prompt_too_long", None, len(prompt), None, seconds, 1, "in-process")
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        ended = bool(output) and output[-1] in self._ends
        finish = "stop" if ended else "length"
        return Answer(text, None, finish, len(prompt), len(output), seconds, 1, "in-process")


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn: what the model's files name, as vLLM reads them, and the tokenizer's own."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([token for token in (*ids, tokenizer.eos_token_id) if token is not None]))
