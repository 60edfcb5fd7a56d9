"""Benchmarks by their names: how many items each has, how they may be asked, and their questions or prompts.

A number over the wrong items is not a number of that benchmark, so files that hold others, more or fewer are refused
before a model sees one, unless a limit says that a part is meant.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from harmon.evaluation.benchmarks import (
    ai2d,
    dpg,
    fid_sets,
    geneval,
    gqa,
    mmbench,
    mme,
    mmmu,
    mmstar,
    ocrbench,
    pope,
    seed,
    wise,
)
from harmon.evaluation.files.found import file_of
from harmon.evaluation.question import Prompt, Question
from harmon.evaluation.scorers import counts
from pipelines.errors import ConfigurationError, HarmonError
from pipelines.settings import nearest

Item = TypeVar("Item", Question, Prompt)
SHOWN = 3  # wrong counts that an error lists


@dataclass(frozen=True)
class Count:
    """How many items were published."""

    total: tuple[int, ...]
    """Any of these; none where no count is known."""
    by: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Fact to value to number."""
    file: tuple[str, str] | None = None
    """A file and its MD5, where that stands for the count."""


@dataclass(frozen=True)
class Understanding:
    """A benchmark of questions."""

    read: Callable[[Path, str], Iterator[Question]]
    variants: tuple[str, ...]
    """How it may be asked; the first where nothing is said."""
    count: Count


@dataclass(frozen=True)
class Generation:
    """A benchmark of prompts."""

    read: Callable[..., Iterator[Prompt]]
    """Of the folder, and whether the real pictures are wanted."""
    count: Count


def _pope(*splits: str) -> Understanding:
    count = Count((counts.POPE_SPLIT * len(splits),), {"split": dict.fromkeys(splits, counts.POPE_SPLIT)})
    return Understanding(partial(pope.read_pope, splits=splits), pope.VARIANTS, count)


def _wise(ranges: Mapping[str, range], verified: bool) -> Generation:
    count = Count((counts.WISE_PROMPTS,), {"category": {name: len(ids) for name, ids in ranges.items()}})
    return Generation(partial(wise.read_wise, verified=verified), count)


def _pro(config: str) -> Understanding:
    return Understanding(
        partial(mmmu.read_mmmu_pro, config=config), mmmu.PRO_VARIANTS, Count((counts.MMMU_PRO_SETTING,))
    )


UNDERSTANDING: dict[str, Understanding] = {
    "pope": _pope(*pope.SPLITS),
    **{f"pope-{split}": _pope(split) for split in pope.SPLITS},
    "mme": Understanding(mme.read_mme, mme.VARIANTS, Count((sum(mme.TASKS.values()),), {"category": mme.TASKS})),
    "mmbench-dev-en": Understanding(
        mmbench.read_mmbench,
        mmbench.VARIANTS,
        Count((counts.MMBENCH_DEV_EN_ROWS,), {"rotation": {"0": counts.MMBENCH_DEV_EN_QUESTIONS}}),
    ),
    # nobody publishes how many rows v1.1 has: its one file is known by its MD5 (VLMEvalKit)
    "mmbench-dev-en-v11": Understanding(
        partial(mmbench.read_mmbench, file=mmbench.FILE_V11),
        mmbench.VARIANTS,
        Count((), file=(mmbench.FILE_V11, "30c05be8f2f347a50be25aa067248184")),
    ),
    "seed-bench-image": Understanding(seed.read_seed, seed.VARIANTS, Count(counts.SEED_IMAGE)),
    "gqa": Understanding(gqa.read_gqa, gqa.VARIANTS, Count((counts.GQA_TESTDEV_BALANCED,))),
    "mmmu-val": Understanding(
        mmmu.read_mmmu,
        mmmu.VARIANTS,
        Count(
            (counts.MMMU_CHOICE + counts.MMMU_OPEN,),
            {"question_type": {mmmu.CHOICE: counts.MMMU_CHOICE, mmmu.OPEN: counts.MMMU_OPEN}},
        ),
    ),
    "mmmu-pro-standard-10": _pro(mmmu.STANDARD_10),
    "mmmu-pro-standard-4": _pro(mmmu.STANDARD_4),
    "mmmu-pro-vision": _pro(mmmu.VISION),
    "mmstar": Understanding(mmstar.read_mmstar, mmstar.VARIANTS, Count((counts.MMSTAR,))),
    "ai2d": Understanding(ai2d.read_ai2d, ai2d.VARIANTS, Count((counts.AI2D_TEST,))),
    "ai2d-no-mask": Understanding(
        partial(ai2d.read_ai2d, name="ai2d-no-mask"), ai2d.VARIANTS, Count((counts.AI2D_TEST,))
    ),
    "ocrbench": Understanding(
        ocrbench.read_ocrbench, ocrbench.VARIANTS, Count((sum(counts.OCRBENCH.values()),), {"type": counts.OCRBENCH})
    ),
}
GENERATION: dict[str, Generation] = {
    "geneval": Generation(
        geneval.read_geneval, Count((sum(counts.GENEVAL_PROMPTS.values()),), {"task": counts.GENEVAL_PROMPTS})
    ),
    "wise-legacy": _wise(wise.LEGACY, verified=False),
    "wise-verified": _wise(wise.VERIFIED, verified=True),
    "dpg-bench": Generation(dpg.read_dpg, Count((counts.DPG_PROMPTS,))),
    "mjhq-30k": Generation(
        fid_sets.read_mjhq,
        Count(
            (counts.FID_IMAGES,),
            {"category": dict.fromkeys(fid_sets.CATEGORIES, counts.FID_IMAGES // len(fid_sets.CATEGORIES))},
        ),
    ),
    "mscoco-30k": Generation(fid_sets.read_coco, Count((counts.FID_IMAGES,))),
}


def read_questions(name: str, folder: Path, variant: str | None = None, limit: int | None = None) -> list[Question]:
    """All questions of a benchmark, or its first `limit`, completed to whole groups.

    Raises:
        ConfigurationError: there is no such benchmark or variant, or the folder lacks its files.
        HarmonError: the files are damaged, are another version, or hold another number than was published.
    """
    if name not in UNDERSTANDING:
        raise _unknown(name, UNDERSTANDING)
    benchmark = UNDERSTANDING[name]
    if variant is not None and variant not in benchmark.variants:
        raise ConfigurationError(
            f"{name} is not asked as {variant!r}; it can be asked as {', '.join(benchmark.variants)}."
        )
    items = benchmark.read(folder, variant or benchmark.variants[0])
    return _checked(name, folder, items, benchmark.count, limit)


def read_prompts(name: str, folder: Path, limit: int | None = None, references: bool = False) -> list[Prompt]:
    """All prompts of a benchmark, or its first `limit`; with the real picture of each where `references` are wanted and
    the benchmark has any. Raises as `read_questions`."""
    if name not in GENERATION:
        raise _unknown(name, GENERATION)
    benchmark = GENERATION[name]
    return _checked(name, folder, benchmark.read(folder, references=references), benchmark.count, limit)


def _unknown(name: str, known: Mapping[str, object]) -> ConfigurationError:
    every = [*UNDERSTANDING, *GENERATION]
    if name in every:
        kind = "draws pictures" if name in GENERATION else "asks questions"
        return ConfigurationError(f"The benchmark {name} {kind}; known here: {', '.join(known)}.")
    return ConfigurationError(f"There is no benchmark {name!r}; {nearest(name, every)}")


def _checked(name: str, folder: Path, items: Iterator[Item], count: Count, limit: int | None) -> list[Item]:
    if limit is not None and limit < 1:
        raise ConfigurationError(f"A limit of {limit} leaves nothing of {name}; let it be 1 or more.")
    if limit is None and count.file:
        _check_file(name, folder, *count.file)
    found, ids = list[Item](), set[str]()
    for item in items:
        if limit is not None and len(found) >= limit and _group(item) != _group(found[-1]):
            break
        if item.id in ids:
            raise HarmonError(f"{folder}: {name} has the item {item.id} twice; fetch its files anew.")
        ids.add(item.id)
        found.append(item)
        if limit is not None and len(found) >= limit and not _group(item):
            break  # nothing behind it is looked at, which may not be there
    if not found:
        raise HarmonError(f"{folder} holds no item of {name}; fetch its files anew.")
    if limit is None:
        _check_count(name, folder, found, count)
    return found


def _group(item: Question | Prompt) -> str:
    return item.group if isinstance(item, Question) else ""


def _check_file(name: str, folder: Path, file: str, md5: str) -> None:
    path = file_of(folder, f"**/{file}", named=name)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise HarmonError(
            f"{path} has the MD5 {found}, where the published file has {md5}; fetch it anew, or ask for a limited "
            "number of items if another file is meant."
        )


def _check_count(name: str, folder: Path, items: Sequence[Question | Prompt], count: Count) -> None:
    wrong = []
    if count.total and len(items) not in count.total:
        published = " or ".join(f"{number:,}" for number in count.total)
        wrong.append(f"{len(items):,} items, where {published} were published")
    for fact, numbers in count.by.items():
        found = Counter(item.facts[fact] for item in items)
        wrong += [
            f"{found[value]:,} with the {fact} {value!r}, where {number:,} were published"
            for value, number in numbers.items()
            if found[value] != number
        ]
    if wrong:
        raise HarmonError(
            f"{folder}: {name} has {'; '.join(wrong[:SHOWN])}. No score over other items is one of {name}: fetch its "
            "files anew, or ask for a limited number of items on purpose."
        )
