"""Schema-exact miniatures of every catalogue entry, from DATASETS.md: native files with its traps planted, and what
must become of them. All wording, ids and links are made up."""

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines import catalogue

GOOD = 200  # sound rows of each, traps not counted
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
HTML = b"<!DOCTYPE html><html><body>gone</body></html>"


def entry(name: str, *settings: str) -> catalogue.Source:
    """An entry of the catalogue; one for a user's own data with the licence that its user has to state."""
    own = ["licence=CC0-1.0"] if name.startswith("own-") else []
    return catalogue.source(name, settings=[*own, *settings])


@dataclass
class Miniature:
    """What lies in a folder, and what must come of it."""

    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    captions: dict[str, str] = field(default_factory=dict)
    """row_id to the caption it must have."""

    def good(self, count: int = 1) -> None:
        self.rows += count

    def bad(self, reason: str, count: int = 1) -> None:
        self.rows += count
        self.rejects[reason] += count

    def noted(self, note: str, count: int = 1) -> None:
        self.rows += count
        self.notes[note] += count


@cache
def picture(number: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40 + number % 7, 32), (number * 37 % 256, number * 91 % 256, number * 11 % 256)).save(out, kind)
    return out.getvalue()


@cache
def cmyk() -> bytes:
    out = io.BytesIO()
    Image.new("CMYK", (40, 32), (10, 200, 0, 0)).save(out, "JPEG")
    return out.getvalue()


@cache
def turned() -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 32), "red").save(out, "JPEG", exif=exif)
    return out.getvalue()


def cut() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(out, "JPEG")
    return out.getvalue()[:700]


def chat(answer: str, question: str = "<image>\nWhat is there?") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, group: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)


def tar(path: Path, members: Iterator[tuple[str, bytes]] | list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fast = {"compresslevel": 1} if mode == "w:gz" else {}
    with tarfile.open(path, mode, **fast) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


def zipped(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members:
            out.writestr(name, data)


CHAT_SCHEMA = pa.schema([("id", pa.string()), ("image", IMAGE), ("conversations", TURNS), ("data_source", pa.string())])


def _chat_row(
    number: int | str, data: bytes | None, turns: list[dict[str, str]], path: str = "x.jpg"
) -> dict[str, Any]:
    return {
        "id": f"{number:0>9}" if isinstance(number, int) else number,
        "image": {"bytes": data, "path": path},
        "conversations": turns,
        "data_source": "cc3m_recap",
    }


def llava_recap_cc3m(root: Path) -> Miniature:
    mini = Miniature()
    rows = [_chat_row(n, picture(n), chat(f"A jetty, number {n}.")) for n in range(GOOD)]
    mini.good(GOOD)
    rows.append(_chat_row("bare", picture(1), chat("A lake.", "<image>")))
    mini.noted("question_put_in")
    rows.append(_chat_row("cmyk", cmyk(), chat("Ink.")))
    rows.append(_chat_row("turned", turned(), chat("Red.")))
    mini.good(2)
    rows.append(_chat_row("null", None, chat("Gone.")) | {"image": None})
    mini.bad("image_missing")
    rows.append(_chat_row("no-bytes", None, chat("Only a path.")))
    mini.bad("image_missing")
    rows.append(_chat_row(3, picture(5), chat("An id again.")))
    mini.bad("duplicate_row_id")
    rows.append(_chat_row("html", HTML, chat("A page.")))
    mini.bad("not_an_image")
    rows.append(_chat_row("cut", cut(), chat("Half.")))
    mini.bad("truncated")
    rows.append(_chat_row("unanswered", picture(2), [{"from": "human", "value": "<image>\nWhy?"}]))
    mini.bad("bad_conversation")
    rows.append(_chat_row("two", picture(2), chat("Two.", "<image><image>\nCompare.")))
    mini.bad("several_images")
    parquet(root / "data/train-00000-of-00002.parquet", rows[:120], CHAT_SCHEMA)
    parquet(root / "data/train-00001-of-00002.parquet", rows[120:], CHAT_SCHEMA)
    mini.captions = {"000000007": "A jetty, number 7.", "bare": "A lake."}
    return mini


def llava_onevision(root: Path) -> Miniature:
    mini = Miniature()
    first = [_chat_row(n, picture(n), chat(f"x = {n}", "<image>\nFind x.")) for n in range(GOOD // 2)]
    second = [_chat_row(n, picture(n, "PNG"), chat(f"y = {n}", "<image>\nFind y.")) for n in range(GOOD // 2)]
    mini.good(GOOD)  # the same ids in both parts
    second += [_chat_row("raw", None, chat("?"), "images/not-there.png")]
    mini.bad("image_missing")
    second += [_chat_row("text", None, chat("4", "What is 2 + 2?")) | {"image": None}]
    mini.noted("text_row")
    (root / "ureader_kg").mkdir(parents=True)
    (root / "ureader_kg/train-00000-of-00001.parquet").write_bytes(b"texts of other images, which nobody reads")
    parquet(root / "geo3k/train-00000-of-00001.parquet", first, CHAT_SCHEMA)
    parquet(root / "aokvqa(cauldron,llava_format)/train-00000-of-00001.parquet", second, CHAT_SCHEMA)
    return mini


def imagenet_1k(root: Path) -> Miniature:
    mini = Miniature()
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], {"huggingface": json.dumps(features)})
    rows = [{"image": {"bytes": picture(n), "path": f"n01440764_{n}.JPEG"}, "label": n % 3} for n in range(GOOD)]
    mini.good(GOOD)
    rows += [{"image": {"bytes": cmyk(), "path": "n1_c.JPEG"}, "label": 0}]
    rows += [{"image": {"bytes": turned(), "path": "n1_t.JPEG"}, "label": 1}]
    rows += [{"image": {"bytes": picture(3, "PNG"), "path": "n1_p.JPEG"}, "label": 2}]
    mini.good(3)
    rows += [{"image": {"bytes": picture(3), "path": "n1_u.JPEG"}, "label": -1}]
    mini.bad("no_label")
    parquet(root / "data/train-00000-of-00001.parquet", rows, schema)
    mini.captions = {"n01440764_0.JPEG": "tench", "n01440764_1.JPEG": "goldfish", "n01440764_5.JPEG": "crane"}
    return mini


def densefusion_1m(root: Path) -> Miniature:
    mini = Miniature()

    def row(name: str, folder: str = "000012") -> dict[str, str]:
        path = f"DenseFusion-1M/{folder}/{name}.png"
        url = f"https://cdn.example.net/p/{name}.jpg"
        return {"image_id": name, "url": url, "caption": f"A stall, {name}: «FIGS»", "image_path": path}

    rows: list[str] = [json.dumps(row(f"{n:013}"), ensure_ascii=bool(n % 2)) for n in range(GOOD)]
    mini.good(GOOD)
    members = [(f"{n:013}.png", picture(n)) for n in range(GOOD)]
    rows += [json.dumps(row("page")), json.dumps(row("expired")), json.dumps(row("0000000000003"))]
    mini.bad("not_an_image")
    mini.bad("image_missing")
    mini.bad("duplicate_row_id")
    members += [("page.png", HTML), ("../../etc/passwd.png", picture(1))]
    rows += [json.dumps(row("climbs") | {"image_path": "../../../../etc/passwd"}), '{"image_id": "torn", "url": ']
    mini.bad("bad_path")
    mini.bad("bad_record")
    (root / "DenseFusion-1M").mkdir(parents=True)
    (root / "DenseFusion-1M/DenseFusion-1M.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    zipped(root / "images/DenseFusion-1M/000012.zip", members)
    (root / "DenseFusion-4V-100k").mkdir()
    (root / "DenseFusion-4V-100k/DenseFusion-4V-100k.jsonl").write_text('{"not": "read"}\n')
    mini.captions = {"0000000000004": "A stall, 0000000000004: «FIGS»"}
    return mini


def _array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def mgm_pretrain(root: Path) -> Miniature:
    mini, rows = Miniature(), []
    half = GOOD // 2
    for n in range(half):
        rows.append({"id": f"{n:09}", "image": f"images/00453/{n:09}.jpg", "conversations": chat(f"a kettle {n}")})
        image = f"allava_laion/images/{n}.jpeg"
        rows.append({"id": f"allava_laion_cap_{n}", "image": image, "conversations": chat(f"A compass – {n}.")})
    mini.good(2 * half)
    plus = "allava_vflan/images_191task_1k/vqa+v2+7.jpg"
    rows.append({"id": "plus", "image": [plus], "conversations": chat("A plus.")})
    mini.good()
    rows.append({"id": "text", "conversations": chat("Paris.", "What is the capital of France?")})
    mini.noted("text_row")
    rows.append({"id": "pair", "image": [plus, plus], "conversations": chat("Both.", "<image>\n<image>\nCompare.")})
    mini.bad("several_images")
    rows.append({"id": "lost", "image": "images/09999/lost.jpg", "conversations": chat("Nothing.")})
    mini.bad("image_missing")
    rows.append({"id": "number", "image": plus, "conversations": "A string."})
    mini.bad("bad_conversation")
    _array(root / "mgm_pretrain.json", rows)
    zipped(root / "images.zip", [(f"00453/{n:09}.jpg", picture(n)) for n in range(half)])
    zipped(root / "ALLaVA-4V/allava_laion/images.zip", [(f"images/{n}.jpeg", picture(n)) for n in range(half)])
    (root / "ALLaVA-4V" / plus).parent.mkdir(parents=True)
    (root / "ALLaVA-4V" / plus).write_bytes(picture(4))
    return mini


def sharegpt4v_pt(root: Path) -> Miniature:
    mini, rows, sam = Miniature(), [], 0
    for n in range(GOOD):
        family = ("coco", "llava", "sam")[n % 3]
        image = {
            "coco": f"coco/train2017/{n:012}.jpg",
            "llava": f"llava/llava_pretrain/images/00{n % 10}/{n:09}.jpg",
            "sam": f"sam/images/sa_{n}.jpg",
        }[family]
        sam += family == "sam"
        rows.append({"id": f"{family}_{n}", "image": image, "conversations": chat(f"A tram waits, {n}.")})
    (root / "coco/train2017").mkdir(parents=True)
    for n in range(0, GOOD, 3):
        (root / f"coco/train2017/{n:012}.jpg").write_bytes(picture(n))
    zipped(root / "llava/images.zip", [(f"00{n % 10}/{n:09}.jpg", picture(n)) for n in range(1, GOOD, 3)])
    there = list(range(2, GOOD, 3))[: sam // 2]  # of SA-1B only one tar is here
    tar(root / "sam/sa_000000.tar", [(f"./sa_{n}.jpg", picture(n)) for n in there])
    mini.good(GOOD - sam + len(there))
    mini.bad("image_missing", sam - len(there))
    _array(root / "share-captioner_coco_lcs_sam_1246k_1107.json", rows)
    return mini


def infinity_mm(root: Path) -> Miniature:
    mini = Miniature()

    def sample(
        key: str, data: bytes, turns: list[dict[str, str]], image: str = "pics/1.png"
    ) -> list[tuple[str, bytes]]:
        record = {"id": key, "source": "vqa", "image": image, "conversations": turns, "ram++_tags": ["chart"]}
        record |= {"ram++_tags_score": [0.91], "phash": ["c3d1b0a4e5f60718"]}
        return [(f"{key}.jpg", data), (f"{key}.json", json.dumps(record).encode())]

    one = [m for n in range(GOOD // 2) for m in sample(f"{n:08}", picture(n, "PNG"), chat(f"Bar {n}."))]
    two = [m for n in range(GOOD // 2) for m in sample(f"{n:08}", picture(n), chat(f"Dot {n}."))]
    mini.good(GOOD)  # PNG in .jpg members, the same keys in both tars
    two += [m for n in range(5) for m in sample(f"t{n}", b"", chat("4", "What is 2 + 2?"), "")]
    mini.noted("text_row", 5)
    two += sample("gone", b"", chat("?", "<image>\nWhich?"))
    mini.bad("image_missing")
    two += [("torn.jpg", picture(1)), ("torn.json", b'{"id": "torn", "conv')]
    mini.bad("bad_record")
    two += sample("00000003", picture(9), chat("Not beside its first half."))
    mini.bad("split_sample")
    two += [("../up.jpg", picture(1))]
    mini.bad("bad_member")
    tar(root / "stage2/7M_0712_math_plus_system_release/part/00000.tar", one)
    bad = root / "stage2/7M_0712_math_plus_system_release_0802/part/00000.tar"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"incomplete, as its publisher said, and left out")
    tar(root / "stage3/onevision-SI/00000.tar", two)
    return mini


def text_to_image_2m(root: Path) -> Miniature:
    mini = Miniature()

    def sample(n: int, data: bytes | None = None) -> list[tuple[str, bytes]]:
        return [
            (f"{n:08}.jpg", data or picture(n)),
            (f"{n:08}.json", json.dumps({"prompt": f"A paper fish {n}."}).encode()),
        ]

    tar(root / "data_512_2M/data_000000.tar", [m for n in range(GOOD) for m in sample(n)])
    tar(root / "data_1024_10K/data_000000.tar", [m for n in range(20) for m in sample(n)] + sample(99, cut()))
    mini.good(GOOD + 20)
    mini.bad("truncated")
    mini.captions = {"data_512_2M/data_000000.tar#00000007": "A paper fish 7."}
    return mini


def blip3o_60k(root: Path) -> Miniature:
    mini = Miniature()

    def sample(n: int) -> list[tuple[str, bytes]]:
        return [(f"{n:07}.jpg", picture(n)), (f"{n:07}.txt", f"a photo of {n} mugs".encode())]

    root.mkdir(parents=True)
    (root / "geneval_train.tar").write_bytes(b"GenEval's own templates, which nobody reads")
    for part in ("dalle3", "journeyDB"):
        tar(root / f"{part}.tar", [m for n in range(GOOD // 2) for m in sample(n)])
    tar(
        root / "text_1.tar",
        [
            ("1.jpg", picture(1)),
            ("1.txt", b"\xff\xfe"),
            ("2.jpg", picture(2)),
            ("2.txt", b"  "),
            ("3.jpg", picture(3)),
            ("3.txt", b"a sign"),
        ],
    )
    mini.good(GOOD + 1)
    mini.bad("bad_record")
    mini.bad("no_caption")
    return mini


def journeydb(root: Path) -> Miniature:
    mini, lines = Miniature(), []
    shown: dict[str, list[tuple[str, bytes]]] = {"017": [], "018": []}
    for n in range(GOOD):
        folder = ("017", "018")[n % 2]
        path = f"./{folder}/{n:08x}-0000-4000-8000-000000000001.jpg"
        task2 = {"Caption": f"A glass greenhouse, {n}."} if n % 4 else {}
        prompt = f"glass greenhouse {n}, dawn https://x.example/a.png <lora:x> --ar 3:2 --v 5"
        lines.append({"img_path": path, "prompt": prompt, "Task1": {"Style": []}, "Task2": task2, "Task3": {}})
        shown[folder].append((f"{path[2:]}", picture(n)))
    mini.good(GOOD)
    lines.append({"img_path": "./017/gone.jpg", "prompt": "lost", "Task2": {"Caption": "Lost."}})
    mini.bad("image_missing")
    lines.append({"img_path": "./199/far.jpg", "prompt": "far", "Task2": {"Caption": "Its archive is absent."}})
    mini.bad("image_missing")
    lines.append({"img_path": "./017/bare.jpg", "prompt": "--ar 3:2", "Task2": None})
    shown["017"].append(("017/bare.jpg", picture(1)))
    mini.bad("no_caption")
    shown["018"].append(("018/unlabelled.jpg", picture(1)))  # no record speaks of it
    lines.reverse()  # records in another order than the images
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    tar(root / "data/train/train_anno_realease_repath.jsonl.tgz", [("train_anno.jsonl", data)], "w:gz")
    for folder, members in shown.items():
        tar(root / f"data/train/imgs/{folder}.tgz", members, "w:gz")
    first = "./017/00000000-0000-4000-8000-000000000001.jpg"
    mini.captions = {
        first: "glass greenhouse 0, dawn",
        first.replace("017/00000000", "018/00000001"): "A glass greenhouse, 1.",
    }
    return mini


# Links: `web` is the address of a server whose folder holds n.jpg, page.html and cut.jpg


PIXELPROSE = """
uid url key status original_caption vlm_model vlm_caption toxicity severe_toxicity obscene identity_attack insult threat
sexual_explicit watermark_class_id watermark_class_score aesthetic_score error_message width height original_width
original_height exif sha256 image_id author subreddit score
"""


def pixelprose(root: Path, web: str) -> Miniature:
    mini = Miniature()
    names = PIXELPROSE.split()
    text = (
        "uid url key status original_caption vlm_model vlm_caption error_message exif sha256 image_id author subreddit"
    )
    schema = pa.schema([(name, pa.string() if name in text.split() else pa.float64()) for name in names])
    rows = [
        {"uid": f"{n:032x}", "url": f"{web}/{n}.jpg", "status": "success", "author": "someone",
         "vlm_caption": f" This image displays: a red barn, {n}."}
        for n in range(GOOD)
    ]  # fmt: skip
    mini.good(GOOD)
    rows.append({"uid": "dead", "url": f"{web}/dead.jpg", "vlm_caption": "x"})
    mini.bad("http_404")
    rows.append({"uid": "page", "url": f"{web}/page.html", "vlm_caption": "x"})
    mini.bad("not_an_image")
    rows.append({"uid": "none", "url": None, "vlm_caption": "x"})
    mini.bad("no_url")
    rows.append({"uid": "mute", "url": f"{web}/1.jpg", "vlm_caption": None})
    mini.bad("no_caption")
    rows.append({"uid": f"{5:032x}", "url": f"{web}/1.jpg", "vlm_caption": "x"})
    mini.bad("duplicate_row_id")
    for part, cut_ in (("cc12m_00", rows[:90]), ("redcaps_00", rows[90:])):
        parquet(root / f"data/vlm_captions_{part}.parquet", cut_, schema)
    mini.captions = {f"{7:032x}": "a red barn, 7."}
    return mini


def pd12m(root: Path, web: str) -> Miniature:
    mini = Miniature()
    new = pa.schema(
        [(n, pa.string()) for n in ("id", "url", "caption")]
        + [("width", pa.int64()), ("height", pa.int64())]
        + [(n, pa.string()) for n in ("mime_type", "hash", "license", "source")]
    )
    old = pa.schema([(n, pa.string()) for n in ("id", "url", "caption", "md5_hash", "license_type", "s3_key")])
    cc0 = "https://creativecommons.org/publicdomain/zero/1.0/"
    md5 = [hashlib.md5(picture(n)).hexdigest() for n in range(GOOD // 2)]
    rows = [
        {"id": f"3b1f-{n}", "url": f"{web}/{n}.jpg", "caption": f"Ink, {n}.", "license": cc0, "hash": one}
        for n, one in enumerate(md5)
    ]
    more = [
        {"id": f"old-{n}", "url": f"{web}/{n}.jpg", "caption": f"Ink, {n}.", "license_type": cc0,
         "md5_hash": one.upper()}
        for n, one in enumerate(md5)
    ]  # fmt: skip
    mini.good(GOOD)
    rows.append({"id": "flagged", "url": f"{web}/1.jpg", "caption": "Ink.", "license": cc0, "hash": md5[0]})
    mini.bad("changed")
    more.append({"id": "cut", "url": f"{web}/cut.jpg", "caption": "Half."})
    mini.bad("truncated")
    parquet(root / "metadata/pd12m.000.parquet", rows, new)
    parquet(root / "metadata/pd12m.001.parquet", more, old)
    return mini


def megalith_10m(root: Path, web: str) -> Miniature:
    mini = Miniature()
    captions = [f"caption_{m}{s}" for s in ("", "_short") for m in ("internlm2", "florence2", "sharecap")]
    schema = pa.schema(
        [
            ("url_highres", pa.string()),
            ("url_source", pa.string()),
            ("width", pa.int64()),
            ("height", pa.int64()),
            *((name, pa.string()) for name in captions),
        ]
    )
    rows = [{"url_highres": f"{web}/{n}.jpg", "caption_internlm2_short": f"Fields, {n}."} for n in range(GOOD)]
    mini.good(GOOD)
    rows.append({"url_highres": f"{web}/3.jpg", "caption_internlm2_short": "Again."})
    mini.bad("duplicate_row_id")
    rows.append({"url_highres": f"{web}/gone_o.jpg", "caption_internlm2_short": "Dead."})
    mini.bad("http_404")
    parquet(root / "train/train_0000.parquet", rows, schema)
    return mini


def laion_aesthetics(root: Path, web: str) -> Miniature:
    mini = Miniature()
    near = [f"{axis}_nn{n}" for n in (60, 10, 30) for axis in "xy"]
    kinds = {"URL": pa.string(), "TEXT": pa.string(), "WIDTH": pa.float64(), "HEIGHT": pa.float64()}
    kinds |= {name: pa.float64() for name in ("similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE")}
    kinds |= {"hash": pa.int64(), **{name: pa.float64() for name in near}, "__index_level_0__": pa.int64()}

    def row(url: str, **values: Any) -> dict[str, Any]:
        return {"URL": url, "TEXT": "golden hour", "punsafe": 0.0002, "pwatermark": 0.12, "hash": -4118203} | values

    rows = [row(f"{web}/{n}.jpg") for n in range(GOOD)]
    mini.good(GOOD)
    rows += [row(f"{web}/never-1.jpg", punsafe=0.97), row(f"{web}/never-2.jpg", pwatermark=0.9)]
    rows += [row(f"{web}/never-3.jpg", punsafe=None), row(f"{web}/never-4.jpg", punsafe=float("nan"))]
    mini.bad("gated", 4)
    rows.append(row(f"{web}/untold.jpg?x=1", TEXT=None))
    mini.bad("http_404")
    parquet(root / "train.parquet", rows, pa.schema(list(kinds.items())))
    return mini


def own_links(root: Path, web: str) -> Miniature:
    mini = Miniature()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "links.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["url", "note"])
        table.writerows([[f"{web}/{n}.jpg", "a, b"] for n in range(GOOD // 2)])
        table.writerow(["", "no link"])
        table.writerow([f"{web}/1.jpg", "too", "many"])
    (root / "more.txt").write_text("".join(f"{web}/{n}.jpg\n" for n in range(GOOD // 2, GOOD)))
    mini.good(GOOD)
    mini.bad("no_url")
    mini.bad("bad_record")
    return mini


def own_folder(root: Path) -> Miniature:
    mini = Miniature()
    for folder in ("teapot", "kettle"):
        (root / folder).mkdir(parents=True)
        for n in range(GOOD // 2):
            (root / folder / f"{n:04}.jpg").write_bytes(picture(n))
    mini.good(GOOD)
    (root / "teapot/0003.txt").write_text("A blue teapot.\n")
    (root / "teapot/notes.doc").write_bytes(b"x")
    mini.bad("not_an_image")
    (root / "kettle/link.jpg").symlink_to("/etc/hostname")
    mini.bad("bad_path")
    (root / "alone.png").write_bytes(picture(1, "PNG"))
    mini.noted("no_caption")
    mini.captions = {"teapot/0003.jpg": "A blue teapot.", "kettle/0003.jpg": "kettle"}
    return mini


def own_webdataset(root: Path) -> Miniature:
    mini = Miniature()
    members = [m for n in range(GOOD) for m in ((f"{n}.jpg", picture(n)), (f"{n}.txt", b"a cat"))]
    tar(root / "a.tar", members)
    tar(root / "b.tar.gz", members[:40], "w:gz")
    mini.good(GOOD + 20)
    return mini


def own_parquet(root: Path) -> Miniature:
    mini = Miniature()
    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    rows: list[dict[str, Any]] = [{"image": picture(n), "caption": f"a cat, {n}"} for n in range(GOOD)]
    mini.good(GOOD)
    rows += [{"image": picture(1), "caption": None}, {"image": None, "caption": "nothing to see"}]
    mini.bad("no_caption")
    mini.bad("no_image")
    parquet(root / "deep/part.parquet", rows, schema)
    return mini


def cc12m_wds(root: Path) -> Miniature:
    mini = Miniature()
    members = [
        m
        for n in range(GOOD)
        for m in ((f"{n:09}.jpg", picture(n)), (f"{n:09}.json", b"{}"), (f"{n:09}.txt", b"alt text"))
    ]
    tar(root / "cc12m-train-0000.tar", members)
    mini.good(GOOD)
    return mini


def megalith_10m_images(root: Path) -> Miniature:
    mini = Miniature()
    members = []
    for n in range(GOOD):
        record = {"key": f"{n:09}", "url": f"https://live.example.com/{n}_o.jpg", "width": 40}
        members += [(f"{n:09}.jpg", picture(n)), (f"{n:09}.json", json.dumps(record).encode())]
    tar(root / "00000.tar", members)
    mini.noted("no_caption", GOOD)
    return mini


WITH_IMAGES: dict[str, Callable[[Path], Miniature]] = {
    "llava-recap-cc3m": llava_recap_cc3m,
    "llava-onevision": llava_onevision,
    "imagenet-1k": imagenet_1k,
    "densefusion-1m": densefusion_1m,
    "mgm-pretrain": mgm_pretrain,
    "sharegpt4v-pt": sharegpt4v_pt,
    "infinity-mm": infinity_mm,
    "text-to-image-2m": text_to_image_2m,
    "blip3o-60k": blip3o_60k,
    "journeydb": journeydb,
    "own-folder": own_folder,
    "own-webdataset": own_webdataset,
    "own-parquet": own_parquet,
    "cc12m-wds": cc12m_wds,
    "megalith-10m-images": megalith_10m_images,
}
WITH_LINKS: dict[str, Callable[[Path, str], Miniature]] = {
    "pixelprose": pixelprose,
    "pd12m": pd12m,
    "megalith-10m": megalith_10m,
    "laion-aesthetics": laion_aesthetics,
    "own-links": own_links,
}


def web(folder: Path) -> None:
    """What the server of links shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(GOOD):
        (folder / f"{n}.jpg").write_bytes(picture(n))
    (folder / "page.html").write_bytes(HTML)
    (folder / "cut.jpg").write_bytes(cut())
