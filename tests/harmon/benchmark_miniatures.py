"""Schema-exact miniatures of the benchmarks' published files, from EVALS.md: as many items as were published, few and
tiny pictures, and the traps planted. All wording and ids are made up."""

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harmon.evaluation.benchmarks import fid_sets, mme, wise
from harmon.evaluation.scorers.counts import GENEVAL_PROMPTS, OCRBENCH

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MCQ = "Which is it?"
SUBJECTS = [f"Subject_{number}" for number in range(30)]  # an underscore in the name, as in Art_Theory


@cache
def jpeg(number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((24, 20)).rotate(number * 37).convert("RGB").save(out, "JPEG", quality=60)
    return out.getvalue()


def cell(number: int = 0) -> dict[str, Any]:
    return {"bytes": jpeg(number % 7), "path": f"{number}.jpg"}


def parquet(path: Path, rows: list[dict[str, Any]], schema: Iterable[tuple[str, Any]], group: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(schema))), path, row_group_size=group)


def texts(*names: str) -> list[tuple[str, Any]]:
    return [(name, pa.string()) for name in names]


def pictures(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number % 7))


def zipped(path: Path, names: Iterable[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, jpeg(number % 7))


def pope_lines(split: str, count: int = 3000) -> list[dict[str, Any]]:
    return [
        {
            "question_id": n + 1,
            "image": f"COCO_val2014_{n % 5:012}.jpg",
            "text": f"Is there a {split} {n} in the image?",
            "label": "no" if n % 2 else "yes",
        }
        for n in range(count)
    ]


def pope(root: Path) -> None:
    pictures(root / "val2014", (f"COCO_val2014_{n:012}.jpg" for n in range(5)))
    (root / "output/coco").mkdir(parents=True)
    for split in ("random", "popular", "adversarial"):
        lines = "".join(json.dumps(line) + "\n" for line in pope_lines(split))
        (root / f"output/coco/coco_pope_{split}.json").write_text(lines)


def pope_hub(root: Path) -> None:
    schema = [*texts("id", "question_id", "question", "answer", "image_source", "category"), ("image", IMAGE)]
    for split in ("random", "popular", "adversarial"):
        rows = [
            {
                "id": str(n),
                "question_id": str(line["question_id"]),
                "question": line["text"],
                "answer": line["label"],
                "image_source": line["image"].removesuffix(".jpg"),
                "category": split,
                "image": cell(n),
            }
            for n, line in enumerate(pope_lines(split))
        ]
        parquet(root / f"Full/{split}-00000-of-00001.parquet", rows, schema)


def mme_pairs(task: str) -> list[tuple[str, str]]:
    """Stems and questions: the stems are the same in every task."""
    return [(f"{n:04}", f"Is this {task} {n}?") for n in range(mme.TASKS[task] // 2)]


def mme_published(root: Path) -> None:
    """Five tasks in two folders each, seven in one, and two as lists."""
    base = root / "MME_Benchmark_release_version/MME_Benchmark"
    for task in mme.TASKS:
        split = task in ("artwork", "celebrity", "landmark", "posters", "scene")
        listed = task in ("existence", "OCR")
        folder, words = (base / task / "images", base / task / "questions_answers_YN") if split else (base / task,) * 2
        folder.mkdir(parents=True)
        words.mkdir(exist_ok=True)
        lines = []
        for place, (stem, text) in enumerate(mme_pairs(task)):
            (folder / f"{stem}.{'png' if place % 2 else 'jpg'}").write_bytes(jpeg(place % 7))
            yes, no = f"{text} Please answer yes or no.", f"Is this not {text[8:]} Please answer yes or no."
            if listed:
                name = f"{stem}.{'png' if place % 2 else 'jpg'}"
                lines += [f"{name}\t{yes}\tYes\n", f"{name}\t{no}\tNo\n"]
            else:
                (words / f"{stem}.txt").write_text(f"{yes}\tYes\r\n{no}\tNo\n\n" if place else f"{yes}\tYes\n{no}\tNo")
        if listed:
            (root / "eval_tool/Your_Results").mkdir(parents=True, exist_ok=True)
            (root / f"eval_tool/Your_Results/{task}.txt").write_text("".join(lines))


def mme_hub(root: Path) -> None:
    rows = [
        {
            "question_id": f"{task}/{stem}.png",
            "image": cell(int(stem)),
            "question": f"{text} Please answer yes or no.",
            "answer": answer,
            "category": task,
        }
        for task in sorted(mme.TASKS)
        for stem, text in mme_pairs(task)
        for answer in ("Yes", "No")
    ]
    schema = [*texts("question_id"), ("image", IMAGE), *texts("question", "answer", "category")]
    parquet(root / "data/test-00000-of-00001.parquet", rows, schema)


OPTIONS = ("a teddy bear", "a rabbit", 'a "cat"', "a dog\tor\nso")
MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
           "comment", "split")  # fmt: skip


def mmbench_rows(groups: tuple[int, int, int] = (900, 201, 63)) -> list[list[str]]:
    """So many questions with four, three and two options: 1,164 in 4,329 rows. Base rows come first, as published."""
    sizes = [4] * groups[0] + [3] * groups[1] + [2] * groups[2]
    rows = []
    for turn in range(4):
        for base, size in enumerate(sizes):
            if turn >= size:
                continue
            options = [*OPTIONS[:size][turn:], *OPTIONS[:size][:turn]]
            answer = "ABCD"[options.index(OPTIONS[1])]
            own = base64.b64encode(jpeg(base % 7)).decode()
            image = own if turn == 0 or base % 2 else str(base)  # of every second question only the base has it
            absent = ["nan", ""][base % 2]
            hint = "A passage.\nOf two lines." if base % 3 == 0 else absent
            rows.append([
                str(turn * 1_000_000 + base), MCQ, hint, *options, *[absent] * (4 - size), answer, "identity",
                image, "made up", "coarse", "", "dev",
            ])  # fmt: skip
    return rows


def write_tsv(path: Path, rows: list[list[str]], head: Iterable[str] = MMBENCH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([list(head), *rows])


def mmbench(root: Path) -> None:
    write_tsv(root / "MMBench_DEV_EN.tsv", mmbench_rows())


def seed_questions(count: int = 14233) -> list[dict[str, Any]]:
    def one(number: int, kind: int) -> dict[str, Any]:
        return {
            "answer": "ABCD"[number % 4],
            "choice_a": "One",
            "choice_b": "Two",
            "choice_c": 3,
            "choice_d": "None",  # an answer here, not an absent one
            "data_id": f"{number % 5}_9" if kind < 10 else f"v_{number}.mp4",
            "data_type": "image" if kind < 10 else "video",
            "question": f"How many, number {number}?",
            "question_id": str(100_000 + number) if kind < 10 else f"v{number}",
            "question_type_id": kind,
        }

    return [*(one(n, 1 + n % 9) for n in range(count)), *(one(n, 10 + n % 3) for n in range(4))]


def seed(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "SEED-Bench.json").write_text(json.dumps({"questions": seed_questions(), "question_type": {"x": 1}}))
    zipped(root / "SEED-Bench-image.zip", [f"SEED-Bench-image/{n}_9" for n in range(5)])


def seed_hub(root: Path, count: int = 40) -> None:
    rows = [row | {"image": [cell(n)] * (1 if row["data_type"] == "image" else 8), "choice_c": "3",
                   "question_type_id": row["question_type_id"]}
            for n, row in enumerate(seed_questions(count))]  # fmt: skip
    names = (
        "answer",
        "choice_a",
        "choice_b",
        "choice_c",
        "choice_d",
        "data_id",
        "data_type",
        "question",
        "question_id",
    )
    schema = [*texts(*names), ("question_type_id", pa.int16()), ("image", pa.list_(IMAGE))]
    parquet(root / "data/test-00000-of-00001.parquet", rows, schema)


def gqa_questions(count: int = 12578) -> dict[str, dict[str, Any]]:
    return {
        f"{201000 + n}": {
            "question": f"Is it {n}?",
            "imageId": f"n{n % 5}",
            "answer": "yes",
            "fullAnswer": "Yes, it is.",
            "isBalanced": True,
            "types": {"structural": "verify", "semantic": "attr", "detailed": "x"},
            "groups": {"global": None, "local": "1"},
            "semantic": [],
            "entailed": [],
            "equivalent": [],
            "annotations": {},
        }
        for n in range(count)
    }


def gqa(root: Path) -> None:
    (root / "questions1.2").mkdir(parents=True)
    (root / "questions1.2/testdev_balanced_questions.json").write_text(json.dumps(gqa_questions()))
    pictures(root / "images", (f"n{n}.jpg" for n in range(5)))


def gqa_hub(root: Path) -> None:
    types = pa.struct(texts("structural", "semantic", "detailed"))
    rows = [{"id": name, **row} for name, row in gqa_questions().items()]
    schema = [*texts("id", "imageId", "question", "answer", "fullAnswer"), ("isBalanced", pa.bool_()), ("types", types)]
    parquet(root / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", rows, schema, group=5000)
    images = [{"id": f"n{n}", "image": cell(n)} for n in range(5)]
    parquet(root / "testdev_balanced_images/testdev-00000-of-00001.parquet", images, [*texts("id"), ("image", IMAGE)])


def mmmu_row(subject: str, number: int, kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"validation_{subject}_{number + 1}",
        "question": f"<image 1> What of it, {number}?",
        "options": "['$6', '$7', \"it's 8\", '<image 2>']" if kind == "multiple-choice" else "[]",
        "explanation": "",
        "img_type": "['Tables']",
        "answer": "C" if kind == "multiple-choice" else ["['24/7', '3.429']", "36"][number % 2],
        "topic_difficulty": "Easy",
        "question_type": kind,
        "subfield": "Managerial",
    }
    row |= {f"image_{place}": None for place in range(1, 8)}
    return row | {"image_1": cell(number), "image_2": cell(number + 1), "image_3": None}


MMMU = [
    *texts("id", "question", "options", "explanation"),
    *((f"image_{place}", IMAGE) for place in range(1, 8)),
    *texts("img_type", "answer", "topic_difficulty", "question_type", "subfield"),
]


def mmmu(root: Path, change: Callable[[dict[str, Any]], None] = lambda row: None, subjects: int = 30) -> None:
    """53 open questions, one of them answered by a list; the first question is changed by `change`."""
    left = 53
    for subject in SUBJECTS[:subjects]:
        rows = []
        for number in range(30):
            open_now = left > 0 and number > 27
            left -= open_now
            rows.append(mmmu_row(subject, number, "open" if open_now else "multiple-choice"))
        if subject == SUBJECTS[0]:
            change(rows[0])
        parquet(root / f"{subject}/validation-00000-of-00001.parquet", rows, MMMU)


def mmmu_pro(root: Path) -> None:
    def row(number: int, many: int) -> dict[str, Any]:
        options = [f"option {place}" for place in range(many)]
        return mmmu_row("Art", number, "multiple-choice") | {
            "id": f"test_Art_{number}", "options": str(options), "answer": "D", "subject": "Art",
        }  # fmt: skip

    schema = [*texts("id", "question", "options", "answer", "subject", "img_type", "topic_difficulty"), *MMMU[4:11]]
    for config, many in (("standard (10 options)", 10), ("standard (4 options)", 4)):
        parquet(root / config / "test-00000-of-00001.parquet", [row(n, many) for n in range(1730)], schema)
    seen = [{"id": f"test_Art_{n}", "image": cell(n), "options": "['a', 'b']", "answer": "B", "subject": "Art"}
            for n in range(1730)]  # fmt: skip
    parquet(root / "vision/test-00000-of-00001.parquet", seen, [*texts("id", "options", "answer", "subject"),
                                                               ("image", IMAGE)])  # fmt: skip


def mmstar(root: Path) -> None:
    """Its pictures are plain bytes, and its index a number."""
    rows = [
        {
            "index": n,
            "question": f"Which style, {n}?\nOptions: A: old, B: new, C: nan, D: None",
            "image": jpeg(n % 7),
            "answer": "ABCD"[n % 4],
            "category": "coarse perception",
            "l2_category": "image scene and topic",
            "meta_info": "made up",
        }
        for n in range(1500)
    ]
    schema = [("index", pa.int64()), *texts("question", "answer", "category", "l2_category", "meta_info"),
              ("image", pa.binary())]  # fmt: skip
    parquet(root / "mmstar.parquet", rows, schema)


def ai2d(root: Path) -> None:
    rows = [{"question": f"what is {n}", "options": ["a", "b", "c", "d"], "answer": str(n % 4), "image": cell(n)}
            for n in range(3088)]  # fmt: skip
    schema = [*texts("question", "answer"), ("options", pa.list_(pa.string())), ("image", IMAGE)]
    parquet(root / "data/test-00000-of-00002.parquet", rows[:2000], schema)
    parquet(root / "data/test-00001-of-00002.parquet", rows[2000:], schema)


def ocr(root: Path) -> None:
    rows = [
        {"dataset": "HME100k", "question": "what is written?", "question_type": kind, "answer": ["CHAIN", "Chain"],
         "image": cell(n)}
        for kind, many in OCRBENCH.items() for n in range(many)
    ]  # fmt: skip
    schema = [*texts("dataset", "question", "question_type"), ("answer", pa.list_(pa.string())), ("image", IMAGE)]
    parquet(root / "data/test-00000-of-00001.parquet", rows, schema)


def geneval_lines() -> list[dict[str, Any]]:
    def line(tag: str, number: int) -> dict[str, Any]:
        include: list[dict[str, Any]] = [{"class": "dog", "count": 1}]
        if tag == "position":
            include.append({"class": "cat", "count": 1, "position": ["left of", 0]})
        made: dict[str, Any] = {"tag": tag, "include": include, "prompt": f"a photo of a {tag} {number}"}
        return made | ({"exclude": [{"class": "dog", "count": 3}]} if tag == "counting" else {})

    return [line(tag, number) for tag, many in GENEVAL_PROMPTS.items() for number in range(many)]


def geneval_file(root: Path) -> None:
    (root / "prompts").mkdir(parents=True)
    lines = "".join(json.dumps(line) + "\n" for line in geneval_lines())
    (root / "prompts/evaluation_metadata.jsonl").write_text(lines)


def wise_files(root: Path, ranges: dict[str, range] = wise.LEGACY) -> None:
    """Of the natural sciences the subcategory says which; the rest says other things."""
    root.mkdir(exist_ok=True)
    for file, names in zip(
        wise.FILES, (["CULTURE"], ["TIME", "SPACE"], ["BIOLOGY", "PHYSICS", "CHEMISTRY"]), strict=True
    ):
        rows = [
            {
                "Prompt": f"The fruit of number {number}",
                "Explanation": "It is an apple.",
                "Category": "made up",
                "Subcategory": name.title() if file == wise.FILES[2] else "Longitudinal",
                "prompt_id": number,
            }
            for name in names
            for number in ranges[name]
        ]
        (root / file).write_text(json.dumps(rows, indent=1))


DPG = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
       "question_natural_language")  # fmt: skip


def dpg(root: Path) -> None:
    root.mkdir(exist_ok=True)
    with (root / "dpg_bench.csv").open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(DPG)
        for item in range(1065):
            text = f'A "very" dense scene, number {item},\nof two lines.'
            out.writerow(
                [f"item{item}", text, "", 1, 0, "entity", "whole", "entity - whole (park)", "Is there a park?"]
            )
            out.writerow(
                [f"item{item}", text, "", 2, "1", "entity", "part", "entity - part (tree)", "Is there a tree?"]
            )
            out.writerow([f"item{item}", text, "", 3, "1,2", "relation", "spatial", "relation", "Is it in it?"])


def mjhq(root: Path, pictured: bool = False) -> None:
    root.mkdir(exist_ok=True)
    named = {
        f"{category}-{n}": {"category": category, "prompt": f"{category}, highly detailed, {n}"}
        for category in fid_sets.CATEGORIES
        for n in range(3000)
    }
    (root / "meta_data.json").write_text(json.dumps(named))
    if pictured:
        zipped(root / "mjhq30k_imgs.zip", (f"{row['category']}/{name}.jpg" for name, row in named.items()))


def coco(root: Path) -> None:
    root.mkdir(exist_ok=True)
    with (root / fid_sets.CAPTIONS).open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["image_id", "text"])
        out.writerows([n + 42, f"A man, a plan, {n}"] for n in range(30000))
