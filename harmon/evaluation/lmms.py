"""Harmon in lmms-eval: its whole catalogue of tasks on any checkpoint, by the entry point `lmms_eval.models`.

    make lmms-eval
    .venv-lmms-eval/bin/lmms-eval --model harmon --model_args pretrained=runs/demo --tasks mme,pope --batch_size 16

This module runs in lmms-eval's own environment alone (infra/lmms-eval); nothing of ours imports it.

What lmms-eval leaves to a model, and what is done here:

- Pictures stand before the question, whatever its `<image>` marks say, padded with grey to a square, as in training.
  Harmon was trained on one picture a question; of several it sees the first, as in `harmon evaluate`, and a warning
  names the task. A video or a sound is refused.
- `until` cuts the answer before the first of its strings; a `temperature` of 0, or `do_sample: false`, is greedy.
- `loglikelihood` gives the mean *loss* of the continuation, as lmms-eval's own models do: its multiple-choice tasks
  take the smallest.
- `draw=true` makes `generate_until` draw the text as a picture, and answers {"text": "", "images": [FILE]}, as WISE and
  the other drawing tasks want.

Shape letters: B prompts, L prompt length, R labelled tokens, V vocabulary.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from harmon.answering import AnswerConfig
from harmon.ask import answer_questions
from harmon.convert.released import Named
from harmon.generate import draw_pictures
from harmon.likelihood import answer_losses
from harmon.sampling_config import SamplingConfig
from harmon.seeds import stream
from harmon.trained import load
from pipelines.errors import ConfigurationError
from pipelines.settings import parse

log = logging.getLogger(__name__)
LONGEST = 1024  # new tokens where a task names no bound: the release's


class HarmonLmms(lmms):  # type: ignore[misc]
    """A checkpoint of any form (`harmon.trained.open_checkpoint`) as lmms-eval's model `harmon`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 16,
        max_batch_size: int | str | None = None,
        px: int | str | None = None,
        tokenizer: str | None = None,
        vae: str | None = None,
        model: str | None = None,
        draw: bool | str = False,
        output: str = "drawn",
        seed: int | str = 0,
    ) -> None:
        """`pretrained` names the checkpoint, and `tokenizer`, `vae` and `model` what released files lack. `px`: side of
        its pictures (None: as the last stage trained). `output`: folder for what it draws, in one of its own
        for these weights and this seed.

        Raises:
            ConfigurationError: no such checkpoint, or an argument that means nothing.
        """
        super().__init__()
        local = int(os.environ.get("LOCAL_RANK", 0))
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(f"cuda:{local}" if place == "cuda" else place)
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if dtype not in kinds:
            raise ConfigurationError(f"dtype={dtype}: name one of {', '.join(kinds)}.")
        named = Named(_path(tokenizer), _path(vae), model)
        self.trained = load(Path(pretrained), named, str(self.device), kinds[dtype])
        self.batch = int(batch_size) if str(batch_size).isdigit() else 16  # "auto" is lmms-eval's word for: choose
        self.px = None if px is None else int(px)
        self.draw, self.seed = str(draw).lower() == "true", int(seed)
        self.output = Path(output) / f"{self.trained.fingerprint}-seed{self.seed}"
        self._several: set[str] = set()
        """Tasks of which it was told that their questions have several pictures."""
        self.sampling = parse(SamplingConfig, self.trained.sampling, f"{pretrained}: sampling")

    # -- what lmms-eval asks ---------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """One answer a request, in their order; asked again of one document (`--repeats`), with another seed."""
        if self.draw:
            return self._drawn(requests)
        answers = [""] * len(requests)
        times: Counter[tuple[str, int]] = Counter()
        for batch in self._batches(requests, lambda args: json.dumps(args[1], sort_keys=True, default=str)):
            how: Mapping[str, Any] = requests[batch.numbers[0]].args[1]
            seeds = []
            for number in batch.numbers:
                document, task = requests[number].args[3:5]
                seeds.append(stream(self.seed, "lmms-eval", task, document, times[task, document]))
                times[task, document] += 1
            told = answer_questions(
                self.trained, batch.pictures, batch.texts, self.px, _answer_config(how), self.batch, seeds
            )
            for number, answer in zip(batch.numbers, told, strict=True):
                answers[number] = _cut(answer, _until(how))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(mean loss of the continuation, whether it is what greedy answering would say), a request each.

        lmms-eval 0.7.3 makes text of a bare pair, which no task can then read; what a GenerationResult holds it leaves.
        """
        found = [GenerationResult((0.0, False))] * len(requests)
        for batch in self._batches(requests):
            told = [self._continuation(requests[number].args) for number in batch.numbers]
            losses = answer_losses(self.trained, batch.pictures, batch.texts, told, self.px)
            for number, one in zip(batch.numbers, losses, strict=True):
                found[number] = GenerationResult(one)
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refused: only a few tasks of the catalogue ask in rounds."""
        raise NotImplementedError("Harmon answers one question at a time; leave tasks of many rounds out.")

    # -- how it is done --------------------------------------------------------------------------------------

    def _batches(
        self, requests: Sequence[Instance], way: Callable[[tuple[Any, ...]], str] = lambda args: ""
    ) -> Iterator["_Batch"]:
        """Neighbouring requests that one batch can answer: alike in `way`, all with a picture or all without.

        lmms-eval keeps its documents undecoded, so a batch's pictures are all that is in memory.
        """
        for start in range(0, len(requests), self.batch):
            groups: dict[tuple[str, bool], _Batch] = {}
            for number in range(start, min(start + self.batch, len(requests))):
                args = requests[number].args
                picture = self._picture(*args[2:6]) if len(args) > 2 else None
                group = groups.setdefault((way(args), picture is None), _Batch([], [], None if picture is None else []))
                group.numbers.append(number)
                group.texts.append(args[0].replace("<image>", "").strip())
                if picture is not None and group.pictures is not None:
                    group.pictures.append(picture)
            yield from groups.values()

    def _picture(self, of_document: Any, document: int, task: str, split: str) -> Image.Image | None:
        if not of_document:
            return None
        shown = _pictures(of_document(self.task_dict[task][split][document]), task)
        if len(shown) > 1 and task not in self._several:
            self._several.add(task)
            log.warning("%s has questions with several pictures: Harmon is shown the first of each", task)
        return shown[0].convert("RGB") if shown else None

    def _continuation(self, args: tuple[Any, ...]) -> str:
        told = args[1]
        return str(told(self.task_dict[args[4]][args[5]][args[3]]) if callable(told) else told).strip()

    def _drawn(self, requests: Sequence[Instance]) -> list[str]:
        """Each prompt as a picture in a file that its task and document name; one that is there is not drawn again."""
        self.output.mkdir(parents=True, exist_ok=True)
        files = [self.output / f"{request.args[4]}_{request.args[3]}.png".replace("/", "_") for request in requests]
        todo = [number for number, file in enumerate(files) if not file.exists()]
        for start in range(0, len(todo), self.batch):
            part = todo[start : start + self.batch]
            seeds = [stream(self.seed, "lmms-eval", *requests[number].args[4:2:-1]) for number in part]
            prompts = [requests[number].args[0] for number in part]
            drawn = draw_pictures(self.trained, prompts, seeds, self.sampling, self.px, self.batch)
            for number, pixels in zip(part, drawn, strict=True):
                attempt = files[number].with_suffix(".part")
                Image.fromarray(pixels).save(attempt, "PNG")
                attempt.replace(files[number])
        return [json.dumps({"text": "", "images": [str(file.absolute())]}) for file in files]


@dataclass(frozen=True)
class _Batch:
    """Requests by number, their texts, and their pictures; None: they have none."""

    numbers: list[int]
    texts: list[str]
    pictures: list[Image.Image] | None


def _pictures(visuals: Iterable[Any] | None, task: str) -> list[Image.Image]:
    shown = [one for one in visuals or () if one is not None]
    for one in shown:
        if not isinstance(one, Image.Image):
            raise ConfigurationError(f"The task {task} shows a {type(one).__name__}, and Harmon sees pictures alone.")
    return shown


def _answer_config(how: Mapping[str, Any]) -> AnswerConfig:
    """lmms-eval's generation arguments; beams and the like, which change how a greedy search is done, are not read."""
    temperature = float(how.get("temperature") or 0.0) if how.get("do_sample", True) else 0.0
    longest = how.get("max_new_tokens") or how.get("max_gen_toks") or LONGEST
    return AnswerConfig(max_new_tokens=int(longest), temperature=temperature, top_p=float(how.get("top_p") or 1.0))


def _until(how: Mapping[str, Any]) -> list[str]:
    until = how.get("until") or ()
    return [one for one in ([until] if isinstance(until, str) else until) if one]


def _cut(answer: str, until: Sequence[str]) -> str:
    ends = [answer.find(one) for one in until if one in answer]
    return answer[: min(ends)].strip() if ends else answer


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
