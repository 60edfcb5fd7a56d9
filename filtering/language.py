"""The language of captions, as a column: by py3langid, whose model (97 languages) comes with its package."""

import pyarrow as pa

from filtering.groups import check_free
from pipelines.dataset import Dataset
from pipelines.manifest import SOURCE, Commit
from pipelines.steps import ProgressCallback, Reads, Step, StepRun

STEP_VERSION = 1
LONGEST = 1000  # characters that are looked at: more do not change the answer

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("language", pa.string()),
        ("probability", pa.float32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def language_group(captions: str) -> str:
    """The column group with the languages of a caption group, `source` or a caption version."""
    return f"language.{captions}"


def language_step(dataset: Dataset, captions: str = SOURCE) -> Step:
    """The step that writes the group `language_group(captions)`."""
    told = {"captions": captions, "longest": LONGEST}
    return Step("language", STEP_VERSION, told, (Reads(dataset, (captions,)),))


def write_languages(dataset: Dataset, captions: str = SOURCE, on_progress: ProgressCallback | None = None) -> Commit:
    """Write language (ISO 639-1) and probability of each caption; rows without one fail with `no_caption`."""
    run = StepRun(dataset, language_step(dataset, captions), on_progress)
    if run.committed:
        return run.committed
    check_free(dataset, language_group(captions), run.step)
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for shard in run.pending(dataset.shard_numbers):
        output = run.shard(shard)
        table = dataset.table(captions, shard, ["key", "caption" if captions == SOURCE else "text"])
        rows = []
        for key, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if not text:
                rows.append({"key": key, "status": "failed", "reason": "no_caption"})
                continue
            language, probability = identifier.classify(text[:LONGEST])
            rows.append({"key": key, "language": language, "probability": float(probability), "status": "ok"})
        output.columns(language_group(captions), pa.Table.from_pylist(rows, schema=SCHEMA))
        output.finish(len(rows))
    return run.commit()
