"""The embedded engine: a causal or a vision-language model in this process, through Transformers, in batches."""

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

from pipelines.errors import ConfigurationError
from recaption.engines import PICTURE_THREADS, UNREADABLE, Answer, Answered, Question, with_images
from recaption.language_model import LanguageModel, context_length, local_folder, sees_images
from recaption.prompt import Sampling

PICTURES = 16  # of one lot: a million pixels are 24 MB of patches
Encoded = dict[str, torch.Tensor]


class TransformersEngine:
    """Batched decoding on `device` in float32: greedy answers of a batch together, random ones each with its seed.

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
        folder = local_folder(model)
        self._processor: Any = None
        kind: Any = AutoModelForCausalLM
        if sees_images(model):
            kind = AutoModelForImageTextToText
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._tokenizer: Any = self._processor.tokenizer
        else:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True
        )
        self._model.to(device).eval()
        self._ends = _end_tokens(self._model, self._tokenizer)
        # Transformers fills what a generation config leaves open from the model's own, which may hold
        # penalties.
        self._model.generation_config = GenerationConfig()

    @property
    def version(self) -> str:
        return f"transformers {transformers.__version__}"

    @property
    def batch_rows(self) -> int:
        return self._batch_rows

    @property
    def batch_pictures(self) -> int:
        return min(PICTURES, self._batch_rows)

    def answers(self, lots: Iterator[Sequence[Question]]) -> Iterator[Answered]:
        """A lot's answers together, as `Engine.answers` says; every lot is answered before the next is taken."""
        with ThreadPoolExecutor(PICTURE_THREADS) as threads:
            for lot in lots:
                asked, blind = with_images(lot, threads)
                answers = self._answer(asked) if asked else []
                if lot:
                    yield [
                        *((question, UNREADABLE) for question in blind),
                        *((question, answer) for (question, _), answer in zip(asked, answers, strict=True)),
                    ]

    def _answer(self, asked: Sequence[tuple[Question, bytes | None]]) -> list[Answer]:
        """One answer per question; without room for `max_tokens` after it, a refusal: `prompt_too_long`."""
        started = time.perf_counter()
        lot = [question for question, _ in asked]
        encoded = [self._encode(question.message, image) for question, image in asked]
        fits = [
            _length(one) + question.sampling.max_tokens <= self._context
            for one, question in zip(encoded, lot, strict=True)
        ]
        written: dict[int, list[int]] = {}
        for rows, sampling in _together(lot, fits):
            outputs = self._generate([encoded[row] for row in rows], sampling)
            written |= dict(zip(rows, outputs, strict=True))
        seconds = (time.perf_counter() - started) / len(lot)
        return [self._as_answer(_length(one), written.get(row), seconds) for row, one in enumerate(encoded)]

    def _encode(self, message: str, shown: bytes | None) -> Encoded:
        """What the model is given of one question, each tensor with a first dimension of 1 or of image patches."""
        if shown is None:
            chat: list[dict[str, Any]] = [{"role": "user", "content": message}]
        elif self._processor is None:
            raise ConfigurationError("This model sees no images; name a vision-language model such as Qwen2-VL.")
        else:
            content = [{"type": "image"}, {"type": "text", "text": message}]
            chat = [{"role": "user", "content": content}]
        template = self._processor or self._tokenizer
        text = template.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if shown is None:
            return dict(self._tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        with Image.open(io.BytesIO(shown)) as image:
            return dict(self._processor(text=[text], images=[image.convert("RGB")], return_tensors="pt"))

    def _generate(self, prompts: Sequence[Encoded], sampling: Sampling) -> list[list[int]]:
        """Token ids written after each prompt, up to and with the one that ended it."""
        inputs = {name: tensor.to(self._device) for name, tensor in self._padded(prompts).items()}
        how = GenerationConfig(
            do_sample=sampling.method == "random",
            temperature=sampling.temperature if sampling.method == "random" else None,
            top_p=sampling.top_p if sampling.method == "random" else None,
            top_k=0 if sampling.method == "random" else None,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(self._ends),
            pad_token_id=self._ends[0],
            use_cache=True,
        )
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(self._threads or before)
            devices = [] if self._device == "cpu" else [self._device]
            with torch.inference_mode(), torch.random.fork_rng(devices):
                torch.manual_seed(sampling.seed or 0)
                rows = self._model.generate(**inputs, generation_config=how)
        finally:
            torch.set_num_threads(before)
        width = inputs["input_ids"].shape[1]
        return [self._until_end(row) for row in rows[:, width:].tolist()]

    def _padded(self, prompts: Sequence[Encoded]) -> Encoded:
        """One batch: what belongs to tokens is padded at the left, what belongs to images stands in order."""
        width = max(map(_length, prompts))
        pads = {"input_ids": self._ends[0], "attention_mask": 0, "mm_token_type_ids": 0}
        batch: dict[str, list[torch.Tensor]] = {}
        for prompt in prompts:
            for name, tensor in prompt.items():
                if name in pads:
                    missing = width - tensor.shape[1]
                    tensor = torch.nn.functional.pad(tensor, (missing, 0), value=pads[name])
                batch.setdefault(name, []).append(tensor)
        return {name: torch.cat(tensors) for name, tensors in batch.items()}

    def _until_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens) - 1)
        return tokens[: end + 1]

    def _as_answer(self, tokens_in: int, output: list[int] | None, seconds: float) -> Answer:
        if output is None:
            return Answer(None, "prompt_too_long", None, tokens_in, None, seconds, 1, "in-process")
        text = self._tokenizer.decode(output, skip_special_tokens=True)
        ended = bool(output) and output[-1] in self._ends
        finish = "stop" if ended else "length"
        return Answer(text, None, finish, tokens_in, len(output), seconds, 1, "in-process")


def _together(lot: Sequence[Question], fits: Sequence[bool]) -> Iterator[tuple[list[int], Sampling]]:
    """Rows of one `generate` each: greedy ones of equal length limits, and every random one alone."""
    greedy: dict[Sampling, list[int]] = {}
    for row, question in enumerate(lot):
        if not fits[row]:
            continue
        if question.sampling.method == "random":
            yield [row], question.sampling
        else:
            greedy.setdefault(question.sampling, []).append(row)
    for sampling, rows in greedy.items():
        yield rows, sampling


def _length(encoded: Encoded) -> int:
    return int(encoded["input_ids"].shape[1])


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn: what the model's files name, as vLLM reads them, and the tokenizer's own."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([token for token in (*ids, tokenizer.eos_token_id) if token is not None]))
