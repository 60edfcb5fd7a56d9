"""What a selection would do, before it does it: counts, what thresholds keep, pictures."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from filtering.decode import Undecodable, decoded
from filtering.plan import Plan
from filtering.rows import ShardRows
from filtering.shuffle import places_of
from filtering.spread import Spread
from pipelines.charts import funnel
from pipelines.disk import make_folder
from pipelines.manifest import IMAGES, SOURCE
from pipelines.page import Markup, Page, Picture, Remark, Section, code, gallery, table, thumbnail

SIDE, COLUMNS = 160, 8
SHOWN = 32  # pictures that stay, and as many that leave


def contact_sheet(made: Plan, path: Path) -> int:
    """Write one JPEG with pictures that stay and, below a line, pictures that leave; returns how many are on it."""
    kept, left = (_some(made, stays, SHOWN) for stays in (True, False))
    rows = [-(-len(part) // COLUMNS) for part in (kept, left)]
    sheet = Image.new("RGB", (COLUMNS * SIDE, sum(rows) * SIDE + 8), "white")
    line = rows[0] * SIDE + 3
    ImageDraw.Draw(sheet).rectangle((0, line, sheet.width, line + 1), fill="red")
    for part, top in ((kept, 0), (left, rows[0] * SIDE + 8)):
        for number, (data, _, _) in enumerate(part):
            picture = _small(data) or _grey()
            x, y = number % COLUMNS * SIDE, top + number // COLUMNS * SIDE
            sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
    make_folder(path.absolute().parent)
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=85)
    path.write_bytes(out.getvalue())
    return len(kept) + len(left)


def survey_page(made: Plan, path: Path, title: str) -> None:
    """Write a self-contained page: the funnel, each measured column with the cut, pictures, counts by source."""
    counts = made.counts
    passages = made.funnel()
    sections = [Section("Funnel", [funnel("Rows through the rules, in order", passages)])]
    if made.spreads:
        lead = "Every picture that has the score, before any other rule; the cut is the lowest score that stays."
        charts = [_chart(made, place, spread) for place, spread in made.spreads.items()]
        sections.append(Section("Scores", charts, lead))
    sections += [
        Section("Stays", [gallery(_pictures(made, True))], "Some of the pictures that stay, drawn by their keys."),
        Section("Leaves", [gallery(_pictures(made, False))], "Some of those that leave, each with its reason."),
        Section("Reasons", [table(["reason", "rows"], [[code(name), n] for name, n in counts.items() if name])]),
        Section("Sources", [table(["source", "rows that stay"], list(map(list, sorted(made.kept_by_source.items()))))]),
    ]
    page = Page(
        title=title,
        kicker="harmon filter",
        summary=made.lines()[0] + ".",
        sections=sections,
    )
    make_folder(path.absolute().parent)
    path.write_text(page.render(), encoding="utf-8")


def _chart(made: Plan, place: tuple[str, str], spread: Spread) -> Markup:
    take = made.selection.take
    if take and place == (take.group, take.column):
        return spread.chart(made.cut.get(""))
    at_least = [one.at_least for one in made.selection.thresholds if (one.group, one.column) == place]
    return spread.chart(next((value for value in at_least if value is not None), None))


def _pictures(made: Plan, stays: bool) -> list[Picture]:
    found = []
    for data, key, why in _some(made, stays, SHOWN):
        remarks = [Remark(why, "bad")] if why else []
        picture = _small(data)
        if picture is None:
            picture, remarks = _grey(), [Remark("cannot be decoded", "bad"), *remarks]
        out = io.BytesIO()
        picture.save(out, "PNG")
        found.append(thumbnail(out.getvalue(), key[:12], *remarks))
    return found


def _small(data: bytes) -> Image.Image | None:
    """A picture that fits its square; None for what cannot be decoded."""
    try:
        picture = decoded(data, draft=SIDE)
    except Undecodable:
        return None
    picture.thumbnail((SIDE - 4, SIDE - 4))
    return picture


def _grey() -> Image.Image:
    return Image.new("RGB", (SIDE // 2, SIDE // 2), "grey")


def _some(made: Plan, stays: bool, number: int) -> list[tuple[bytes, str, str]]:
    """Encoded picture, key and reason of `number` rows, the first in the shuffled order of at most 64 shards."""
    places = list(made.codes)
    spread = [places[at] for at in sorted({int(one) for one in np.linspace(0, len(places) - 1, min(64, len(places)))})]
    candidates: list[tuple[int, tuple[int, int], int, str]] = []
    for number_of, shard in spread:
        rows = ShardRows(made.datasets[number_of], shard)
        if not rows.has(IMAGES):
            continue
        wanted = np.flatnonzero(((made.codes[number_of, shard] == 0) == stays) & rows.pictures)
        keys = rows.values(SOURCE, "key")
        order = places_of((keys[row] for row in wanted), made.selection.seed)
        first = np.argsort(order)[:number]
        candidates += [(int(order[at]), (number_of, shard), int(wanted[at]), keys[int(wanted[at])]) for at in first]
    return [_shown(made, place, row, key, stays) for _, place, row, key in sorted(candidates)[:number]]


def _shown(made: Plan, place: tuple[int, int], row: int, key: str, stays: bool) -> tuple[bytes, str, str]:
    rows = ShardRows(made.datasets[place[0]], place[1])
    images = rows.dataset.images(rows.shard)
    data = images.read(int(rows.members()[row])).data
    images.close()
    why = ""
    if not stays:
        drop = made.drops(place[0], rows)[row]
        why = f"{drop.reason}: {drop.detail}"
    return data, key, why
