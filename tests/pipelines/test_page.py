"""Pages are one well-formed, self-contained document in which nothing from outside is ever markup."""

import io
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.charts import Measure, Passage, Series, bars, funnel, histogram, line_chart, measures
from pipelines.page import (
    Headline,
    Markup,
    Page,
    Picture,
    Remark,
    Section,
    count,
    duration,
    escape,
    facts,
    fold,
    gallery,
    headlines,
    note,
    paragraph,
    percent,
    table,
    thumbnail,
)
from pipelines.svg import ticks

VOID = {"meta", "img"}


class Tags(HTMLParser):
    """Names of all elements, their attributes and text; fails where an element is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def png(width: int, height: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(encoded, "PNG")
    return encoded.getvalue()


def page_of(*content: Markup) -> str:
    return Page("A title", "kicker", "summary", [Section("One part", content)]).render()


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_foreign_text_never_becomes_markup(text: str) -> None:
    hostile = f'<script>alert(1)</script>" onload="x{text}</style>'
    content = [
        paragraph(hostile),
        note(hostile, state="bad"),
        table([hostile], [[hostile]]),
        facts([(hostile, hostile)]),
        fold(hostile, paragraph(hostile)),
        headlines([Headline(hostile, hostile, hostile, "good")]),
        gallery([Picture(png(4, 4), "image/png", hostile, (Remark(hostile, "bad"), Remark(hostile)))]),
        funnel(hostile, [Passage(hostile, 5, 3, hostile), Passage(hostile, 3, 3)]),
        measures(hostile, [Measure(hostile, 0.5, 0.1, 10, hostile)]),
        bars(hostile, [(hostile, 1.0, hostile)]),
        line_chart(hostile, [Series(hostile, [(0, 1), (1, 2)])], hostile, hostile, [(1.5, hostile)]),
        histogram(hostile, [1.0, 2.0], hostile, 1.5),
    ]
    page = Tags(Page(hostile, hostile, hostile, [Section(hostile, content, hostile)], hostile).render())
    assert not any(tag in ("script", "iframe", "object", "link") for tag, _ in page.seen)
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)
    assert sum(tag == "style" for tag, _ in page.seen) == 1


def test_a_page_names_no_outside_address() -> None:
    page = page_of(gallery([thumbnail(png(300, 200), "a red field")]), paragraph("http://example.com/ is only text"))
    links = [
        value for _, attributes in Tags(page).seen for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links and all(link is not None and link.startswith(("data:", "#")) for link in links)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_the_same_content_gives_the_same_bytes() -> None:
    content = histogram("scores", [float(index % 7) for index in range(50)], "score", 3.0)
    assert page_of(content) == page_of(content)


def test_sections_are_linked_from_the_contents() -> None:
    page = Tags(page_of(paragraph("x")))
    assert ("a", {"href": "#one-part"}) in page.seen
    assert any(tag == "section" and attributes.get("id") == "one-part" for tag, attributes in page.seen)


def test_large_pictures_shrink_and_small_ones_keep_their_pixels() -> None:
    large, small = thumbnail(png(900, 300), "x"), thumbnail(png(64, 64), "x")
    assert large.mime == "image/jpeg" and Image.open(io.BytesIO(large.data)).size == (128, 43)
    assert small.mime == "image/png" and Image.open(io.BytesIO(small.data)).size == (64, 64)
    with pytest.raises(OSError):
        thumbnail(b"<html>not a picture</html>", "x")


def test_numbers_in_tables_are_aligned_and_marked() -> None:
    page = Tags(page_of(table(["what", "rows"], [["kept", 1234567], ["lost", 3]])))
    assert "1,234,567" in page.text
    assert sum(attributes.get("class") == "number" for tag, attributes in page.seen if tag == "td") == 2


def test_a_histogram_counts_both_sides_of_its_threshold() -> None:
    chart = histogram("clarity", [0.1, 0.2, 0.5, 0.9, math.nan], "clarity", 0.5)
    assert "threshold 0.5: 2 below, 2 kept" in chart


def test_a_funnel_says_what_left_and_why() -> None:
    text = Tags(page_of(funnel("scenes", [Passage("download", 1200, 1190, "dead_link 10")]))).text
    assert "1,190 of 1,200" in text and "10 left: dead_link 10" in text


@pytest.mark.parametrize("points", [[], [(0.0, math.nan)], [(3.0, 2.0)], [(0.0, 5.0), (1.0, 5.0)]])
def test_charts_of_few_or_no_points_still_draw(points: list[tuple[float, float]]) -> None:
    chart = line_chart("loss", [Series("a", points, smooth=5)], "x", "y")
    Tags(chart)
    assert "nan" not in chart and "inf" not in chart


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), smooth=st.integers(1, 5))
def test_charts_draw_any_numbers(values: list[float], smooth: int) -> None:
    small = [value for value in values if not math.isfinite(value) or abs(value) < 1e100]
    chart = line_chart("loss", [Series("a", list(enumerate(small)), smooth)], "x", "y") + histogram("h", small, "x")
    coordinates = re.findall(r'(?:points|x|y|x1|y1|width|height)="([^"]*)"', chart)
    assert all(math.isfinite(float(number)) for text in coordinates for number in re.split("[ ,]", text) if number)


def test_long_series_are_thinned() -> None:
    chart = line_chart("loss", [Series("a", [(float(index), 1.0 + index % 3) for index in range(50_000)])], "x", "y")
    assert len(chart) < 10_000


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_lie_within_their_range(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert 1 <= len(marks) <= 12
    assert all(low - 1e-6 * span <= mark <= low + span + 1e-6 * span for mark in marks)


def test_quantities_are_written_for_people() -> None:
    assert [duration(0.42), duration(37.4), duration(245), duration(7860)] == [
        "0.4 s",
        "37 s",
        "4 min 05 s",
        "2 h 11 min",
    ]
    assert (count(1234567), percent(0.958), percent(0.958, 1)) == ("1,234,567", "96%", "95.8%")
    assert escape("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;" and escape(Markup("<b>")) == "<b>"
