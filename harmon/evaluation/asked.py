"""What a checkpoint answers to a benchmark's questions, kept as a dataset (DESIGN section 3).

    OUT/BENCHMARK-KEY8/    groups `source`, `answer` and `answer.telemetry`, a row for each question

The step's key holds the checkpoint's fingerprint, how it answers, and every question as it was asked, so that other
weights or wordings lie in another folder, and the same ones are not asked again. Each answer is written down as soon as
it is there: after a kill only those that were under way are asked again.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harmon.answering import GREEDY, AnswerConfig
from harmon.ask import answer_questions
from harmon.evaluation.crew import ALONE, Crew, at_work
from harmon.evaluation.question import Question, decoded
from harmon.evaluation.subject import Subject
from pipelines.canonical import canonical_json, sample_key, sha256_hex
from pipelines.columns import SOURCE_SCHEMA
from pipelines.dataset import Dataset
from pipelines.steps import Step, StepRun

STEP, VERSION = "benchmark-answers", 1
ANSWER = "answer"
SHARD = 1000  # questions: one is committed once all are done, and resumes from its journal before that
TERMS = {"licence": "the benchmark's own", "terms": "for measuring alone"}
OnProgress = Callable[[int, int], None]

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("item", pa.string()),
        ("group", pa.string()),  # questions that count only together
        ("prompt", pa.string()),  # as the model was asked
        ("gold", pa.list_(pa.field("element", pa.string()))),
        ("options", pa.string()),  # JSON, letter to text
        ("facts", pa.string()),  # JSON
        ("pictures", pa.int32()),  # that the question has; the first was shown
        ("picture_sha256", pa.string()),  # of the one that was shown, as published
        ("answer", pa.string()),  # as it came
    ]
)
TELEMETRY = pa.schema([("key", pa.string()), ("seconds", pa.float64()), ("host", pa.string())])


@dataclass(frozen=True)
class Row:
    """One question with its answer, as a scorer wants it."""

    key: str
    item: str
    group: str
    prompt: str
    gold: tuple[str, ...]
    """One, or several of which any will do."""
    options: Mapping[str, str]
    facts: Mapping[str, str]
    pictures: int
    picture_sha256: str
    """Of the one that was shown."""
    answer: str


@dataclass(frozen=True)
class Answered:
    """What a worker says of one question."""

    answer: str
    picture_sha256: str
    seconds: float
    host: str


def asking(subject: Subject, questions: Sequence[Question], asked_as: str, px: int, config: AnswerConfig) -> Step:
    """The step that asks `questions`, worded as `asked_as`, about pictures of `px` pixels a side."""
    items = [[q.id, q.prompt, q.answer, dict(q.options), dict(q.facts), q.group] for q in questions]
    configuration = {
        "benchmark": questions[0].benchmark,
        "asked_as": asked_as,
        "questions": len(questions),
        "questions_sha256": sha256_hex(canonical_json(items)),
        "checkpoint": {"weights": subject.identity.weights, "dtype": subject.dtype, "px": px},
        "answers": config.model_dump(),
    }
    return Step(STEP, VERSION, configuration)


def ask(
    subject: Subject,
    questions: Sequence[Question],
    asked_as: str,
    out: Path,
    px: int,
    config: AnswerConfig = GREEDY,
    crew: Crew = ALONE,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """The answers to `questions` as a dataset below `out`; what stands there already is not asked again.

    A question with several pictures is asked with the first, as MMMU's own LLaVA baseline asks it: the model was
    trained with one picture a question.

    Raises:
        ConfigurationError: the checkpoint cannot be opened, or a prompt is too long for it.
        HarmonError: a picture cannot be decoded, a worker died again and again, or another process asks the same.
    """
    step = asking(subject, questions, asked_as, px, config)
    dataset = Dataset(out / f"{questions[0].benchmark}-{step.key8}")
    run = StepRun(dataset, step)
    if run.committed:
        return dataset
    shards = [questions[start : start + SHARD] for start in range(0, len(questions), SHARD)]
    make = AnswererOf(subject, subject.identity.weights, px, config)
    with at_work(crew, make) as work:
        for number in run.pending(range(len(shards))):
            journal = run.journal(number)
            said = {line["item"]: line for line in journal.entries()}
            before = number * SHARD
            for some, answers in work(_batches([q for q in shards[number] if q.id not in said], crew.batch)):
                lines = [{"item": q.id, **vars(one)} for q, one in zip(some, answers, strict=True)]
                journal.append(*lines)
                said |= {line["item"]: line for line in lines}
                if on_progress:
                    on_progress(before + len(said), len(questions))
            _write(run, number, shards[number], said)
    run.commit({questions[0].benchmark: TERMS}, {"checkpoint": provenance(subject)})
    return dataset


def answered_rows(dataset: Dataset) -> list[Row]:
    """All questions with their answers, in the order in which they were published."""
    table = dataset.whole_table(ANSWER)
    return [
        Row(
            key=row["key"],
            item=row["item"],
            group=row["group"],
            prompt=row["prompt"],
            gold=tuple(row["gold"]),
            options=json.loads(row["options"]),
            facts=json.loads(row["facts"]),
            pictures=row["pictures"],
            picture_sha256=row["picture_sha256"],
            answer=row["answer"],
        )
        for row in table.to_pylist()
    ]


@dataclass(frozen=True)
class AnswererOf:
    """Makes an Answerer in whichever process calls it."""

    subject: Subject
    weights: str
    px: int
    config: AnswerConfig

    def __call__(self) -> Answerer:
        return Answerer(self)


class Answerer:
    """One copy of the model, which answers batches of questions."""

    def __init__(self, made: AnswererOf) -> None:
        self._made = made
        self._trained = made.subject.open(made.weights)

    def work(self, items: Sequence[Question]) -> list[Answered]:
        """The answer to each question, which depends on no other."""
        began = time.perf_counter()
        shown = [question.pictures[0] for question in items]
        answers = answer_questions(
            self._trained,
            [decoded(picture) for picture in shown],
            [question.prompt for question in items],
            self._made.px,
            self._made.config,
            batch=len(items),
        )
        seconds, host = (time.perf_counter() - began) / len(items), socket.gethostname()
        hashes = [hashlib.sha256(picture.read()).hexdigest() for picture in shown]
        return [Answered(said, sha256, seconds, host) for said, sha256 in zip(answers, hashes, strict=True)]


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _write(run: StepRun, number: int, questions: Sequence[Question], said: Mapping[str, Mapping[str, Any]]) -> None:
    keys = [sample_key(question.benchmark, question.id) for question in questions]
    source, answers, telemetry = [], [], []
    for key, question in zip(keys, questions, strict=True):
        line = said[question.id]
        empty: dict[str, Any] = dict.fromkeys(SOURCE_SCHEMA.names)
        named = {"key": key, "source": question.benchmark, "row_id": question.id, "task": "text"}
        source.append(empty | named | {"caption": question.text})
        answers.append(
            {
                "key": key,
                "item": question.id,
                "group": question.group,
                "prompt": question.prompt,
                "gold": [question.answer] if isinstance(question.answer, str) else list(question.answer),
                "options": json.dumps(dict(question.options), ensure_ascii=False),
                "facts": json.dumps(dict(question.facts), ensure_ascii=False),
                "pictures": len(question.pictures),
                "picture_sha256": line["picture_sha256"],
                "answer": line["answer"],
            }
        )
        telemetry.append({"key": key, "seconds": line["seconds"], "host": line["host"]})
    output = run.shard(number)
    output.columns("source", pa.Table.from_pylist(source, SOURCE_SCHEMA))
    output.columns(ANSWER, pa.Table.from_pylist(answers, SCHEMA))
    output.columns(f"{ANSWER}.telemetry", pa.Table.from_pylist(telemetry, TELEMETRY))
    output.finish(rows_in=len(questions))


def provenance(subject: Subject) -> dict[str, Any]:
    """Where the weights were found, which no key includes."""
    where = {"path": str(subject.checkpoint), "average": subject.named.average}
    return where | {"stage": subject.identity.stage, "step": subject.identity.step}
