"""From a row as a reader finds it to a sample, or to the reason why it gives none: the rules for odd rows.

Which rule applies is told by the catalogue entry (`odd`); docs/catalogue.md lists them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.canonical import sha256_hex
from pipelines.catalogue import Captions, Source
from pipelines.layouts import ClassFolders, Fields, Layout, ParquetImages, matching
from pipelines.readers.parquet_images import LABELS
from pipelines.readers.row import Native, found_in, text_of, value_of

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = re.compile(r"\s*<image>\s*")
PREAMBLE = re.compile(r"\A\s*This image displays:?\s*", re.IGNORECASE)
ALONE = "tile|hd|testp?|creative|fast|relax|turbo|uplight|upbeta|upanime|video|beta|public|stealth|private|p|raw"
NUMBERED = (
    "aspect|ar|version|v|quality|q|stylize|s|chaos|c|seed|sameseed|stop|iw|width|w|height|h|repeat|r|weird|niji|cw|sw|"
    "sref"
)
NUMBER = r"\s+[\d.]+(?:\s?:\s?[\d.]+)?(?![^\s,])"
MIDJOURNEY = re.compile(
    rf"https?://\S+|<[^<>\s]*>|(?<!\S)\u2014(?:{NUMBERED}){NUMBER}|(?<!\S)--(?:"
    rf"(?:{NUMBERED})(?:{NUMBER}|(?!\S))|style\s+(?:raw|cute|scenic|expressive|original|4[abc])(?!\S)"
    rf"|(?:{ALONE})(?!\S)|no(?!\S).*?(?=\s--[a-z]|\Z))",
    re.IGNORECASE | re.DOTALL,
)
"""Links, <tokens>, and the parameters of Midjourney's documentation, each with what belongs to it: nothing, a number, a
word, and after --no everything up to the next. A telephone makes an em dash of two hyphens: before a flag and its
number it is theirs. Anything else with dashes is prose."""
FIRST_OF_SEVERAL, CONVERTED_QUESTION, TEXT_ROW, NO_CAPTION = (
    "first_of_several_images",
    "question_put_in",
    "text_row",
    "no_caption",
)
NOTES = (FIRST_OF_SEVERAL, CONVERTED_QUESTION, TEXT_ROW, NO_CAPTION)
"""What a rule did to a row that was kept."""

Turn = dict[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of the one form: what its dataset will say of it, and the bytes of its image as they came."""

    row_id: str
    task: str
    caption: str | None
    conversations: list[Turn] | None
    url: str | None
    licence: str | None
    image: bytes | None
    note: str | None = None
    """One of NOTES."""
    caption_kind: str | None = None
    """Of what kind the entry says that the caption is, where there is one."""
    md5: str | None = None
    """Of the file behind the link, as its publisher had it, in small letters."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that gives no sample."""

    row_id: str
    url: str | None
    reason: str
    detail: str


class _Odd(Exception):
    """A row that a rule turns away."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def fields_of(layout: Layout) -> Fields:
    """Where a layout's values stand."""
    return Fields() if isinstance(layout, ClassFolders) else layout.fields


def sample_of(source: Source, layout: Layout, native: Native, is_link: bool = False) -> Sample | Reject:
    """What the rules make of a row; `is_link`: its image is the link that it names, to be fetched later."""
    fields = fields_of(layout)
    try:
        row_id = _encodable(text_of(native.record, fields.row_id)) or native.name
    except (TypeError, _Odd):
        row_id = native.name
    url = None
    try:
        url = _encodable(_text(native, fields, "url"))
        if native.problem is not None:
            raise _Odd(*native.problem)
        if is_link and not url:
            raise _Odd("no_url", "the row has no link")
        return _sample(source, layout, native, row_id, url, is_link)
    except _Odd as odd:
        return Reject(row_id, url, odd.reason, odd.detail)


def _sample(source: Source, layout: Layout, native: Native, row_id: str, url: str | None, is_link: bool) -> Sample:
    fields, rules, note = fields_of(layout), source.odd, None
    licence = _encodable(_text(native, fields, "licence"))
    turns = _turns(value_of(native.record, fields.conversations))
    there = is_link or native.images > 0
    asked_for = sum(turn["text"].count("<image>") for turn in turns or ())
    if max(native.images, asked_for if there else 0) > 1:
        if rules.several_images == "reject":
            raise _Odd("several_images", f"{max(native.images, asked_for)} images in one row")
        note = FIRST_OF_SEVERAL
    if turns is not None:
        if asked_for and not there:
            raise _Odd("image_missing", "the conversation speaks of an image that the row does not name")
        turns, put_in = _without_placeholders(turns, source.question if there else None)
        note = note or (CONVERTED_QUESTION if put_in else None)
    caption = _caption(source, layout, native, row_id, turns if there else None)
    if not there:
        if turns is None:
            raise _Odd("no_image", "the row has neither an image nor a conversation")
        if rules.text_only == "reject":
            raise _Odd("text_only", "the row has no image")
        return Sample(row_id, "text", None, turns, url, licence, None, TEXT_ROW)
    if caption is None and turns is None:
        if rules.image_only == "reject":
            raise _Odd("no_caption", "the row has an image and no text")
        note = NO_CAPTION
    kind = None if caption is None else _kind(source, native.record, fields)
    md5 = _text(native, fields, "md5")
    return Sample(
        row_id, source.task, caption, turns, url, licence, native.image, note, kind, md5.lower() if md5 else None
    )


def _kind(source: Source, record: Mapping[str, Any], fields: Fields) -> str:
    """The kind of a row's caption, by the path of its image."""
    path = value_of(record, fields.image)
    path = path[0] if isinstance(path, list) and path else path
    for part in source.captions.parts:
        if isinstance(path, str) and matching([path], part.images):
            return part.kind
    return source.captions.kind


def _caption(source: Source, layout: Layout, native: Native, row_id: str, turns: list[Turn] | None) -> str | None:
    if beside := native.record.get("txt") if isinstance(layout, ClassFolders) else None:
        return _encodable(beside)
    if LABELS in native.record:
        return _class_name(layout, native.record, row_id)
    caption = _text(native, fields_of(layout), "caption")
    if source.captions.from_answer and caption is None and turns:
        caption = next(turn["text"] for turn in turns if turn["role"] == "assistant")
    return cleaned(_encodable(caption), cleaning(source.captions, native.record, fields_of(layout)))


def cleaning(captions: Captions, record: Mapping[str, Any], fields: Fields) -> str:
    """How the caption of a row is cleaned, by the field that it stands in."""
    only = captions.clean_only
    return captions.clean if not only or found_in(record, fields.caption)[0] in only else "none"


def cleaned(caption: str | None, how: str) -> str | None:
    """A caption without what its publisher is known to leave in it; None where nothing is left."""
    if caption is None:
        return None
    if how == "preamble":
        caption = PREAMBLE.sub("", caption).strip()
    elif how == "midjourney":
        caption = " ".join(MIDJOURNEY.sub(" ", caption).split()).strip(" ,")
    return caption if caption.strip() else None


def _class_name(layout: Layout, record: Mapping[str, Any], row_id: str) -> str | None:
    """The class's words, "tench, Tinca tinca", or the synonym that the entry chooses."""
    words = record[LABELS]
    if isinstance(words, list):  # numbered names
        label = value_of(record, fields_of(layout).label)
        if not isinstance(label, int) or not 0 <= label < len(words):
            raise _Odd("no_label", f"the label {label!r} is no number of a class")
        words = words[label]
    elif words is None:
        words = record["class"]
    if not words:
        return None  # an image in no folder of its own
    how = layout.class_name if isinstance(layout, ParquetImages | ClassFolders) else "first"
    synonyms = [word.strip() for word in str(words).split(",") if word.strip()] or [str(words)]
    if how == "all":
        return str(words)
    return synonyms[int(sha256_hex(row_id.encode())[:8], 16) % len(synonyms)] if how == "random" else synonyms[0]


def _turns(value: Any) -> list[Turn] | None:
    """A conversation as user and assistant turns, one after the other; None where there is none."""
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise _Odd("bad_conversation", f"it is {type(value).__name__}, not a list of turns")
    turns = []
    for one in value:
        if not isinstance(one, Mapping):
            raise _Odd("bad_conversation", "a turn is no mapping")
        said, text = one.get("from", one.get("role")), one.get("value", one.get("content"))
        role = ROLES.get(said) if isinstance(said, str) else None
        if role is None or not isinstance(text, str):
            raise _Odd("bad_conversation", f"a turn of {said!r} with {type(text).__name__}")
        turns.append({"role": role, "text": _encodable(text) or ""})
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise _Odd(
            "bad_conversation", f"the turns are {', '.join(roles)[:100] or 'none'}, not question and answer in turn"
        )
    return turns


def _without_placeholders(turns: list[Turn], question: str | None) -> tuple[list[Turn], bool]:
    """Turns without `<image>`, since an image stands before its conversation; an empty question is put in."""
    put_in, clean = False, []
    for turn in turns:
        text = PLACEHOLDER.sub(" ", turn["text"]).strip() if "<image>" in turn["text"] else turn["text"]
        if turn["role"] == "user" and not text.strip() and question is not None:
            text, put_in = question, True
        if not text.strip() and turn["role"] != "system":
            raise _Odd("bad_conversation", f"a turn of {turn['role']} is empty")
        clean.append({"role": turn["role"], "text": text})
    return clean, put_in


def _text(native: Native, fields: Fields, field: str) -> str | None:
    try:
        return text_of(native.record, getattr(fields, field))
    except TypeError as error:
        raise _Odd("bad_field", str(error)) from None


def _encodable(text: str | None) -> str | None:
    """`text`, if it can be written as UTF-8: half a surrogate pair cannot."""
    if text is not None and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Odd("bad_text", "a text has half a surrogate pair, which is no UTF-8") from None
    return text
