"""The searchable gallery: a card for each chosen sample, with its captions, scores and provenance."""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from pipelines.dataset import Dataset
from pipelines.normalise import BROKEN
from pipelines.page import Markup, Section, code, count, element, facts, fold, join, note, thumbnail
from pipelines.show.samples import Sample, samples

SIDE = 176  # longer side of a thumbnail in pixels
LONGEST = 1200  # characters of one text that are shown


def gallery(dataset: Dataset, number: int) -> Section:
    """At most `number` samples as cards, with a search box that a script brings to life."""
    cards = [_card(sample) for sample in samples(dataset, number)]
    search = element(
        "div",
        Markup(
            '<input id="search" type="search" placeholder="Search captions, keys, sources, reasons…" '
            'aria-label="Search the samples" autocomplete="off">'
        ),
        element("output", id="shown"),
        class_="search",
        hidden="",
    )
    if not cards:
        return Section("Samples", [note("The dataset has no samples.", state="bad")])
    lead = (
        f"{count(len(cards))} of {count(dataset.total_rows)} samples, evenly spread over the shards. "
        "The search looks at everything on a card, folded parts included."
    )
    return Section("Samples", [search, element("div", *cards, class_="samples")], lead)


def _card(sample: Sample) -> Markup:
    texts = [("as it came", _cut(sample.source.get("caption")))] if sample.source.get("caption") else []
    scores: list[tuple[str, object]] = []
    for group, values in sample.groups.items():
        if group.startswith("caption."):
            texts.append((group.removeprefix("caption."), _text(values)))
        else:
            scores += _scores(group, values)
    captions = element("dl", *(join(element("dt", name), element("dd", text)) for name, text in texts))
    parts = [captions]
    if scores:
        parts.append(facts(scores))
    return element(
        "article",
        element("div", _picture(sample)),
        element("div", *parts, fold("Provenance", facts(list(_provenance(sample))))),
        class_="sample",
    )


def _picture(sample: Sample) -> Markup:
    if sample.image is None:
        return element("div", "text only", class_="bare")
    try:
        small = thumbnail(sample.image, "", side=SIDE)
    except (*BROKEN, Image.DecompressionBombError):
        return element("div", "cannot be decoded", class_="bare failed")
    uri = f"data:{small.mime};base64,{base64.b64encode(small.data).decode('ascii')}"
    return Markup(f'<img src="{uri}" alt="{_said(sample)}" loading="lazy">')


def _said(sample: Sample) -> Markup:
    """What a screen reader says of a picture."""
    return join(_cut(sample.source.get("caption") or f"sample {sample.key}")[:200])


def _text(values: Mapping[str, Any]) -> Markup | str:
    if values.get("text") is not None:
        return _cut(values["text"])
    return element("span", f"no text: {values.get('reason') or 'unknown reason'}", class_="failed")


def _scores(group: str, values: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if name in ("key", "status", "reason") or value is None:
            continue
        yield (name if name == group else f"{group} {name}"), f"{value:.4g}" if isinstance(value, float) else str(value)
    if values.get("status") == "failed":
        yield group, element("span", values.get("reason") or "failed", class_="failed")


def _provenance(sample: Sample) -> Iterable[tuple[str, object]]:
    row = sample.source
    yield "key", code(sample.key)
    yield "source", f"{row.get('source')}, row {row.get('row_id')}"
    yield "task", str(row.get("task"))
    if row.get("url") is not None:
        yield "link", code(_cut(row["url"]))  # as text: a page of strangers' links should not offer them to a click
    if row.get("width"):
        yield "picture", f"{row['width']} × {row['height']} px, {row.get('ext')}, {count(row.get('bytes') or 0)} bytes"
        yield "sha256", code(str(row.get("sha256"))[:16])
    yield "licence", f"{row.get('licence') or 'none given'} ({row.get('terms_class') or 'no terms'})"
    if row.get("parent_key"):
        yield "made from", code(row["parent_key"])
    yield "shard", str(sample.shard)


def _cut(text: Any) -> str:
    whole = str(text)
    return whole if len(whole) <= LONGEST else whole[:LONGEST] + " …"
