"""A stand-in for the internet: pictures and lists of links in a folder, which `loopback.serve` serves.

Each list is a Parquet file as those of LAION are, one row for each link: photographs with short captions, and
scenes in three roles (class names, dense captions with questions, dialogues without a picture). Some links
are bad on purpose; `planted` names each and the reason it must end with.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.canonical import canonical_json, sha256_hex
from pipelines.columns import LIST_SCHEMA
from pipelines.errors import HarmonError
from pipelines.photographs import Photograph, photographs
from pipelines.scenes import Scene, class_name, conversation, dense_caption, make_scene, render, text_dialogue
from pipelines.settings import Settings

VERSION = 1  # raise it when equal settings come to give other files
SIDE = 128  # pixels of a scene's picture; stage 3 of the demo trains at this size
STAMP = "published.json"
CLOSED = "http://127.0.0.1:9"  # the discard port, where nothing listens
METADATA = "http://169.254.169.254/latest/meta-data/"  # where clouds hand out credentials


class WebSettings(Settings):
    """What is published, and the port in its links."""

    port: int = 8765
    """Port on 127.0.0.1; part of every link, so another port makes other lists."""
    seed: int = 0
    """Seed of the scenes."""
    classes: int
    """One-object scenes with their class name, task text2image."""
    scenes: int
    """Scenes of one to four objects with dense caption and questions, task image2text."""
    texts: int
    """Dialogues about scenes without their picture, task text."""

    @property
    def root(self) -> str:
        """What the served links begin with."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Planted:
    """A bad row: where it points, and the step and reason that must turn it away.

    A duplicate's reason may meet its twin instead, whichever the step keeps.
    """

    source: str
    row_id: str
    url: str
    step: str
    reason: str


@dataclass(frozen=True)
class Published:
    """What `publish` has written: the list of each source."""

    lists: dict[str, Path]


def planted(settings: WebSettings) -> tuple[Planted, ...]:
    """Every bad row of the lists."""
    root = settings.root
    photographs, scenes = "photographs", "scenes"
    return (
        Planted(photographs, "bad-missing-0", f"{root}/photographs/moved.jpg", "download", "http_404"),
        Planted(photographs, "bad-refused-0", f"{CLOSED}/gone.jpg", "download", "dead_link"),
        Planted(photographs, "bad-html-0", f"{root}/bad/page.jpg", "download", "not_an_image"),
        Planted(photographs, "bad-cut-0", f"{root}/bad/cut.jpg", "download", "truncated"),
        Planted(photographs, "bad-huge-0", f"{root}/bad/huge.png", "download", "too_large"),
        Planted(photographs, "bad-wide-0", f"{root}/bad/wide.png", "select", "extreme_aspect"),
        Planted(photographs, "bad-duplicate-0", f"{root}/bad/cat-again.png", "select", "duplicate"),
        Planted(scenes, "bad-missing-1", f"{root}/scenes/moved.png", "download", "http_404"),
        Planted(scenes, "bad-file-0", "file:///etc/hostname", "download", "forbidden_scheme"),
        Planted(scenes, "bad-private-0", METADATA, "download", "forbidden_address"),
        Planted(scenes, "bad-redirect-0", f"{root}/redirect?to={METADATA}", "download", "forbidden_address"),
        Planted(scenes, "bad-html-1", f"{root}/bad/page.jpg", "download", "not_an_image"),
    )


def scene_of(settings: WebSettings, row_id: str) -> Scene:
    """Ground truth of a row of the scenes list, from its row id (`scene-000012`, `text-000345`)."""
    kind, _, number = row_id.partition("-")
    if kind not in {"scene", "text"} or not number.isdigit():
        raise HarmonError(f"{row_id!r} is no row of the scenes list: those are named scene-000012 or text-000012")
    index = int(number)
    return make_scene(settings.seed, index, objects=1 if index < settings.classes else None)


def publish(folder: Path, settings: WebSettings) -> Published:
    """Write all pictures and lists below `folder`, once.

    A finished folder is left as it is, an unfinished one is completed, one of other settings is replaced.

    Raises:
        HarmonError: the folder holds something that was not published by this function.
    """
    shown = photographs()
    if is_published(folder, settings):
        return Published(_lists(folder))
    wanted = _identity(settings, shown)
    if _stamp(folder).get("settings") != wanted:
        _start_over(folder)
        _put(folder / STAMP, canonical_json({"settings": wanted, "finished": False}))
    for name, content in _pictures(settings, shown):
        target = folder / name
        if not target.exists():
            _put(target, content())
    rows = {"photographs": _photograph_rows(settings, shown), "scenes": _scene_rows(settings)}
    for source, path in _lists(folder).items():
        _put(path, _list(source, settings, rows[source]))
    _put(folder / STAMP, canonical_json({"settings": wanted, "finished": True}))
    return Published(_lists(folder))


def is_published(folder: Path, settings: WebSettings) -> bool:
    """Whether `publish` has finished `folder` with these settings."""
    return _stamp(folder) == {"settings": _identity(settings, photographs()), "finished": True}


def _lists(folder: Path) -> dict[str, Path]:
    return {source: folder / f"list-{source}.parquet" for source in ("photographs", "scenes")}


def _identity(settings: WebSettings, shown: tuple[Photograph, ...]) -> str:
    """Hash of all that the published files depend on; a few scenes stand for the generator."""
    probes = [make_scene(settings.seed, index) for index in range(3)]
    parts = [settings.model_dump_json(), str(VERSION), str(SIDE)]
    parts += [sha256_hex(photograph.path.read_bytes()) + photograph.caption for photograph in shown]
    parts += [
        sha256_hex(render(scene, SIDE).tobytes()) + dense_caption(scene) + repr(conversation(scene)) for scene in probes
    ]
    return sha256_hex("\n".join(parts).encode())


def _stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp: dict[str, Any] = json.loads((folder / STAMP).read_bytes())
        return stamp
    except FileNotFoundError:
        return {}


def _start_over(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).exists():
        raise HarmonError(f"{folder} holds files that were not published here; name an empty folder for the web")
    retired = folder.with_name(f".{folder.name}.retired")  # renamed first: a kill then leaves no half of a folder
    shutil.rmtree(retired, ignore_errors=True)
    if folder.exists():
        folder.rename(retired)
        shutil.rmtree(retired)


def _put(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _pictures(settings: WebSettings, shown: tuple[Photograph, ...]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every served file: path, and what makes its bytes."""
    by_name = {photograph.name: photograph.path for photograph in shown}
    for photograph in shown:
        yield f"photographs/{photograph.path.name}", photograph.path.read_bytes
    yield "bad/page.jpg", lambda: b"<!DOCTYPE html><title>Gone</title><p>This picture has moved."
    yield "bad/cut.jpg", lambda: by_name["flower"].read_bytes()[: by_name["flower"].stat().st_size // 2]
    yield "bad/huge.png", lambda: _png(Image.new("1", (9_000, 9_000)))
    yield "bad/wide.png", lambda: _png(Image.open(by_name["galaxies"]).crop((0, 300, 1000, 500)))
    yield "bad/cat-again.png", by_name["cat"].read_bytes
    for index in range(settings.classes + settings.scenes):
        scene = scene_of(settings, f"scene-{index:06d}")
        yield _scene_path(index), lambda scene=scene: _png(Image.fromarray(render(scene, SIDE)))  # type: ignore[misc]


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _scene_path(index: int) -> str:
    return f"scenes/{index // 1000:03d}/scene-{index:06d}.png"


def _photograph_rows(settings: WebSettings, shown: tuple[Photograph, ...]) -> list[dict[str, object]]:
    return [
        {
            "row_id": photograph.name,
            "url": f"{settings.root}/photographs/{photograph.path.name}",
            "caption": photograph.caption,
            "task": "text2image",
            "licence": photograph.licence,
        }
        for photograph in shown
    ]


def _scene_rows(settings: WebSettings) -> list[dict[str, object]]:
    pictures, total = settings.classes + settings.scenes, settings.classes + settings.scenes + settings.texts
    return [_scene_row(settings, f"{'scene' if i < pictures else 'text'}-{i:06d}", i) for i in range(total)]


def _scene_row(settings: WebSettings, row_id: str, index: int) -> dict[str, object]:
    scene = scene_of(settings, row_id)
    row: dict[str, object] = {"row_id": row_id, "licence": "Apache-2.0"}
    if row_id.startswith("text"):
        dialogue = [{"role": turn.role, "text": turn.text} for turn in text_dialogue(scene)]
        return row | {"task": "text", "conversations": dialogue}
    row["url"] = f"{settings.root}/{_scene_path(index)}"
    if index < settings.classes:
        return row | {"task": "text2image", "caption": class_name(scene)}
    turns = [
        {"role": role, "text": text}
        for question in conversation(scene)
        for role, text in (("user", question.question), ("assistant", question.answer))
    ]
    return row | {"task": "image2text", "caption": dense_caption(scene), "conversations": turns}


def _list(source: str, settings: WebSettings, rows: list[dict[str, object]]) -> bytes:
    """The list as Parquet: good and bad rows in an order drawn from the seed."""
    task = "text2image" if source == "photographs" else "image2text"
    for bad in planted(settings):
        if bad.source == source:
            caption = f"A row that was planted to fail: {bad.row_id}."
            rows.append({"row_id": bad.row_id, "url": bad.url, "caption": caption, "task": task, "licence": "unknown"})
    Random(f"list/{source}/{settings.seed}").shuffle(rows)
    out = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, LIST_SCHEMA), out, compression="zstd")
    return out.getvalue()
