"""The step that has a language model shorten every dense caption, as a new column group."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE, TELEMETRY, Commit
from pipelines.steps import Journal, ProgressCallback, Reads, Step, StepRun
from recaption.checks import failed_checks
from recaption.engines import Answer, Engine
from recaption.language_model import LanguageModel
from recaption.prompt import Prompt

STEP_VERSION = 1

CAPTION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens_in", pa.int32()),
        ("tokens_out", pa.int32()),
        ("checks", pa.list_(pa.string())),  # names of the checks that the answer failed
    ]
)
TELEMETRY_SCHEMA = pa.schema(
    [("key", pa.string()), ("seconds", pa.float32()), ("attempts", pa.int32()), ("endpoint", pa.string())]
)


@dataclass(frozen=True)
class Rewrite:
    """What is computed: the new captions depend on nothing but this and the captions that go in."""

    prompt: Prompt
    model: LanguageModel

    @property
    def configuration(self) -> dict[str, Any]:
        """The part of the step key; the prompt's hash covers its text, sampling and checks."""
        return {
            "prompt": self.prompt.version,
            "prompt_hash": self.prompt.hash,
            "model": self.model.identity(),
        }

    @property
    def group(self) -> str:
        """Name of the column group, caption.<prompt>-<model>-<start of the configuration's hash>."""
        digest = sha256_hex(canonical_json(self.configuration))
        return f"caption.{self.prompt.version}-{self.model.name}-{digest[:8]}"

    def step(self, dataset: Dataset) -> Step:
        """The step that rewrites the captions of `dataset`."""
        configuration = self.configuration | {"group": self.group}
        return Step("rewrite", STEP_VERSION, configuration, (Reads(dataset, (SOURCE,)),))


def rewrite_captions(
    dataset: Dataset,
    rewrite: Rewrite,
    open_engine: Callable[[], AbstractContextManager[Engine]],
    on_progress: ProgressCallback | None = None,
) -> Commit:
    """Write the column group `rewrite.group` (and its telemetry) to `dataset` and commit it.

    Every row is there: with its new caption, or failed with the reason: `not_dense` (of another task than
    the prompt is for), `no_caption`, a check that the answer failed, or the engine's refusal. The engine is
    opened only where shards are left to do. After a kill, neither finished shards nor the finished batches
    of a begun shard are asked again.
    """
    run = StepRun(dataset, rewrite.step(dataset), on_progress)
    if run.committed:
        return run.committed
    pending = run.pending(dataset.shard_numbers)
    if pending:
        with open_engine() as engine:
            for shard in pending:
                _rewrite_shard(run, shard, rewrite, engine)
    return run.commit()


def _rewrite_shard(run: StepRun, shard: int, rewrite: Rewrite, engine: Engine) -> None:
    output = run.shard(shard)
    source = run.dataset.table(SOURCE, shard, ["key", "task", "caption"])
    keys, tasks, captions = (source.column(name).to_pylist() for name in ("key", "task", "caption"))
    skipped = [_why_not(task, caption, rewrite.prompt) for task, caption in zip(tasks, captions, strict=True)]
    messages = {row: rewrite.prompt.message(captions[row]) for row, why in enumerate(skipped) if why is None}
    answers = _ask_all(messages, rewrite.prompt, engine, run.journal(shard))
    rows = (
        {"key": key} | (_skipped(why) if why else _judged(answers[row], rewrite.prompt))
        for row, (key, why) in enumerate(zip(keys, skipped, strict=True))
    )
    asked = ({"key": key} | (asdict(answers[row]) if row in answers else {}) for row, key in enumerate(keys))
    output.columns(rewrite.group, _table(rows, CAPTION_SCHEMA))
    output.columns(rewrite.group + TELEMETRY, _table(asked, TELEMETRY_SCHEMA))
    output.finish(len(keys))


def _why_not(task: str, caption: str | None, prompt: Prompt) -> str | None:
    if task != prompt.applies_to:
        return "not_dense"
    return None if caption and caption.strip() else "no_caption"


def _ask_all(messages: dict[int, str], prompt: Prompt, engine: Engine, journal: Journal) -> dict[int, Answer]:
    """Answers by row. What the journal has is not asked again."""
    answers = {
        row: Answer(**answer)
        for entry in journal.entries()
        for row, answer in zip(entry["rows"], entry["answers"], strict=True)
    }
    for rows in _batches(messages, engine.batch_rows):
        if any(row not in answers for row in rows):
            given = engine.answer([messages[row] for row in rows], prompt.sampling)
            journal.append({"rows": list(rows), "answers": [asdict(answer) for answer in given]})
            answers.update(zip(rows, given, strict=True))
    return answers


def _batches(messages: dict[int, str], size: int) -> list[Sequence[int]]:
    """Rows in batches of like length, so that little is padded. They depend on the shard alone."""
    rows = sorted(messages, key=lambda row: (len(messages[row]), row))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _judged(answer: Answer, prompt: Prompt) -> dict[str, Any]:
    text = (answer.text or "").strip()
    finish = answer.finish_reason or ""
    checks = () if answer.refusal else failed_checks(text, finish, prompt)
    reason = answer.refusal or next(iter(checks), None)
    return {
        "text": None if reason else text,
        "status": "failed" if reason else "ok",
        "reason": reason,
        "finish_reason": answer.finish_reason,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "checks": list(checks),
    }


def _skipped(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": reason, "checks": []}


def _table(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; names that the schema lacks are left out, names that a row lacks are null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
