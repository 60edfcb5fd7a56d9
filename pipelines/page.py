"""One self-contained HTML page: the shape every report of the system shares.

Content is built from small functions that return `Markup`. Plain strings are always escaped, so captions,
URLs and error messages from the open web can be shown as they are. The page carries its style and its
pictures and asks nothing of any network: a Content-Security-Policy in its head refuses every outside address,
and every script but the one, if any, that the page names by its hash.
"""

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["good", "bad", "plain"]
"""How a thing turned out: as hoped, not as hoped, or neither. Always shown by a sign as well as by a
colour."""

SIGNS: dict[State, str] = {"good": "✓", "bad": "✗", "plain": "·"}
STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Markup(str):
    """A string that is HTML already and is put into a page as it stands."""


def escape(value: object) -> Markup:
    """`value` as text safe inside elements and quoted attributes; `Markup` is returned unchanged."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value), quote=True))


def join(*parts: object, between: str = "") -> Markup:
    """The parts one after another, each escaped unless it is `Markup`; `between` is HTML."""
    return Markup(between.join(escape(part) for part in parts))


def element(name: str, *children: object, **attributes: object) -> Markup:
    """`<name …>children</name>`. A trailing underscore in an attribute's name is dropped (`class_`), inner
    ones become hyphens, and an attribute whose value is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def paragraph(*text: object) -> Markup:
    return element("p", *text)


def code(text: object) -> Markup:
    return element("code", text)


def note(*text: object, state: State = "plain") -> Markup:
    """A set-off remark: a stand-in named as one, a missing part, a departure."""
    return element("p", *text, class_=f"note {state}")


def fold(summary: str, *content: object, opened: bool = False) -> Markup:
    """Content behind a line that opens it; for what only some readers want."""
    return element("details", element("summary", summary), *content, open="" if opened else None)


def count(number: int) -> str:
    """`1234567` as `1,234,567`."""
    return f"{number:,}"


def percent(share: float, digits: int = 0) -> str:
    """`0.958` as `96%`."""
    return f"{100 * share:.{digits}f}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `37 s`, `4 min 05 s`, `2 h 11 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table; numbers are set to the right with their thousands marked, everything else to the left."""
    numeric = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(headers))]
    head = (
        element("th", name, class_="number" if right else None) for name, right in zip(headers, numeric, strict=True)
    )
    body = (element("tr", *(_cell(value, right) for value, right in zip(row, numeric, strict=True))) for row in rows)
    inner = join(element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", element("table", inner), class_="scroll")


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """A list of names and values."""
    rows = (join(element("dt", name), element("dd", value)) for name, value in pairs)
    return element("dl", *rows, class_="facts")


@dataclass(frozen=True)
class Headline:
    """One result of the run, large: `value` (short), what it measures, and a sentence that judges it."""

    value: str
    label: str
    verdict: str
    state: State = "plain"


def headlines(results: Sequence[Headline]) -> Markup:
    cards = (
        element(
            "article",
            element("p", result.label, class_="label"),
            element("p", result.value, class_="value"),
            element(
                "p",
                element("span", SIGNS[result.state], class_="sign"),
                " ",
                result.verdict,
                class_="verdict",
            ),
            class_=f"card {result.state}",
        )
        for result in results
    )
    return element("div", *cards, class_="cards")


@dataclass(frozen=True)
class Remark:
    """A line below a picture; one that is good or bad shows its sign."""

    text: str
    state: State = "plain"


@dataclass(frozen=True)
class Picture:
    """A picture of the page: encoded bytes with their MIME type, a caption and remarks. `state` colours its
    frame."""

    data: bytes
    mime: str
    caption: str
    remarks: tuple[Remark, ...] = ()
    state: State = "plain"

    @property
    def uri(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def thumbnail(data: bytes, caption: str, *remarks: Remark, side: int = 128, state: State = "plain") -> Picture:
    """A picture of at most `side` px, for a page that must stay small. Small pictures keep pixels (PNG);
    larger ones become JPEG. Raises OSError when `data` is not a picture that Pillow reads."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        large = max(opened.size) > side
        picture = opened.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    if large:
        picture.save(encoded, "JPEG", quality=82, optimize=True)
    else:
        picture.save(encoded, "PNG", optimize=True)
    return Picture(encoded.getvalue(), "image/jpeg" if large else "image/png", caption, remarks, state)


def gallery(pictures: Sequence[Picture], wide: bool = False) -> Markup:
    """A grid of pictures, each above its caption and remark; `wide` gives captions of several sentences
    room."""
    return element("div", *(_figure(picture) for picture in pictures), class_="gallery wide" if wide else "gallery")


@dataclass(frozen=True)
class Section:
    """One part of a page: a title, an optional sentence that says what to see, and its content."""

    title: str
    content: Sequence[Markup]
    lead: str = ""

    @property
    def anchor(self) -> str:
        return "-".join("".join(letter if letter.isalnum() else " " for letter in self.title.lower()).split())


@dataclass(frozen=True)
class Page:
    """A whole page. `kicker` is the small line above the title, `summary` the sentence or two below it."""

    title: str
    kicker: str
    summary: str
    sections: Sequence[Section]
    footer: str = ""
    script: str = ""
    """JavaScript of our own, never made from data; the page must make sense without it."""
    asks_server: bool = False
    """The script may ask the server that the page came from, and no other."""

    def render(self) -> str:
        """The page as one HTML document."""
        links = (element("li", element("a", part.title, href=f"#{part.anchor}")) for part in self.sections)
        head = join(
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{self._policy()}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="color-scheme" content="light dark">'),
            element("title", self.title),
            element("style", Markup(STYLE.read_text(encoding="utf-8"))),
        )
        header = element(
            "header",
            element("p", self.kicker, class_="kicker"),
            element("h1", self.title),
            element("p", self.summary, class_="summary"),
        )
        body = join(
            element("nav", element("ol", *links), aria_label="Sections"),
            element("main", header, *(_section(part) for part in self.sections), element("footer", self.footer)),
        )
        script = element("script", Markup(self.script)) if self.script else ""
        return f'<!DOCTYPE html>\n<html lang="en">{element("head", head)}{element("body", body, script)}</html>\n'

    def _policy(self) -> str:
        if not self.script:
            return POLICY
        digest = base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode("ascii")
        asking = "; connect-src 'self'" if self.asks_server else ""
        return f"{POLICY}{asking}; script-src 'sha256-{digest}'"


def _section(part: Section) -> Markup:
    lead = (element("p", part.lead, class_="lead"),) if part.lead else ()
    return element("section", element("h2", part.title), *lead, *part.content, id=part.anchor)


def _figure(picture: Picture) -> Markup:
    image = Markup(f'<img src="{picture.uri}" alt="{escape(picture.caption)}" loading="lazy">')
    lines = [element("span", picture.caption, class_="caption")]
    for remark in picture.remarks:
        sign = () if remark.state == "plain" else (element("span", SIGNS[remark.state], class_="sign"), " ")
        lines.append(element("span", *sign, remark.text, class_=f"remark {remark.state}"))
    return element("figure", image, element("figcaption", *lines), class_=picture.state)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object, right: bool) -> Markup:
    shown = f"{value:,}" if _is_number(value) else value
    return element("td", shown, class_="number" if right else None)
