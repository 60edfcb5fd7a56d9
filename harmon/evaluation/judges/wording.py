"""What a WISE judge is asked: our own words, or the official ones read from the official script.

The official prompts stand in PKU-YuanGroup/WISE's scripts and are not ours to ship; `official_wording` reads them from
a copy that you fetched, without running it. A score under our own words is not WISE's, and says so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harmon.evaluation.scorers.wise import Version
from pipelines.canonical import canonical_json, sha256_hex
from pipelines.errors import ConfigurationError, HarmonError

MOST_BYTES = 1 << 20  # of a script
FIELDS = ("Prompt", "Explanation")
_FIELD = re.compile(r"\{(Prompt|Explanation)\}")


@dataclass(frozen=True)
class Wording:
    """A prompt for a judge. `user` holds texts and, at odd places, names of fields of the published record."""

    name: str
    system: str
    user: tuple[str, ...]
    official: bool = False

    @classmethod
    def of(cls, name: str, system: str, template: str) -> Wording:
        """From a text with {Prompt} and {Explanation}."""
        return cls(name, system, tuple(_FIELD.split(template)))

    @property
    def sha256(self) -> str:
        """Names its version: of all its words."""
        return sha256_hex(canonical_json([self.system, self.user]))

    @property
    def label(self) -> str:
        """As a report calls it."""
        return f"{self.name} ({self.sha256[:12]})"

    def fill(self, record: Mapping[str, str]) -> str:
        """The question about one picture. What stands in a field is taken as it is, braces and all."""
        return "".join(record[part] if place % 2 else part for place, part in enumerate(self.user))


_SYSTEM = "You grade pictures that a program drew from a text. You are exact, strict and brief."
OWN: dict[Version, Wording] = {
    "legacy": Wording.of(
        "harmon-wise-legacy-v1",
        _SYSTEM,
        """Grade this picture on three scales. Each grade is 0, 1 or 2.

Consistency: does it show what the text means, which the explanation spells out?
0 - the main thing is missing or contradicts it; 1 - part of it is there; 2 - all of it is there, beyond doubt.

Realism: could it be, by its light, matter, shapes and physics?
0 - plainly impossible or broken; 1 - believable, with visible faults; 2 - like a photograph of the real thing.

Aesthetic Quality: is it well made to look at?
0 - poor; 1 - decent; 2 - outstanding in composition, colour and finish.

Give the lower grade whenever you hesitate; 2 is rare.

Text: "{Prompt}"
Explanation: "{Explanation}"

Answer with these three lines and nothing else:
Consistency: <grade>
Realism: <grade>
Aesthetic Quality: <grade>""",
    ),
    "verified": Wording.of(
        "harmon-wise-verified-v1",
        _SYSTEM,
        """Does this picture show what the text means? The explanation says what has to be seen.

Give 1 only if everything that the explanation asks for is visible and nothing contradicts it; otherwise give 0.

Text: "{Prompt}"
Explanation: "{Explanation}"

Answer with this one line and nothing else:
Score: <0 or 1>""",
    ),
}


def official_wording(script: Path, name: str = "") -> Wording:
    """The official prompt in `gpt_eval.py` (legacy) or `vllm_eval.py` (verified) of PKU-YuanGroup/WISE.

    The script is parsed, never run: the first text of a message by `system` and of one by `user` are taken, where an
    f-string may hold `prompt_data['Prompt']` and `['Explanation']` and nothing else.

    Raises:
        ConfigurationError: there is no such file.
        HarmonError: it holds no such messages, or something else stands in them.
    """
    if not script.is_file():
        raise ConfigurationError(f"There is no {script}; fetch gpt_eval.py from WISE_legacy/ of PKU-YuanGroup/WISE.")
    if script.stat().st_size > MOST_BYTES:
        raise HarmonError(f"{script} has more than {MOST_BYTES:,} bytes; it is another file.")
    try:
        tree = ast.parse(script.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise HarmonError(f"{script} is no Python script; fetch it anew.") from None
    found: dict[str, tuple[str, ...]] = {}
    for role, content in _messages(tree):
        if role not in found and (texts := [_parts(script, text) for text in _texts(content)]):
            found[role] = texts[0]
    if "user" not in found or not set(found["user"][1::2]) >= {"Prompt"}:
        raise HarmonError(f"{script} has no message by `user` with the prompt in it; it is another version.")
    system = "".join(found.get("system", ("",)))
    return Wording(name or f"official {script.name}", system, found["user"], official=True)


def _messages(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Role and content of each message that is written out, in the order of the script."""
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    for node in sorted(dicts, key=lambda node: (node.lineno, node.col_offset)):
        told = _fields(node)
        role = told.get("role")
        if isinstance(role, ast.Constant) and isinstance(role.value, str) and "content" in told:
            yield role.value, told["content"]


def _texts(content: ast.expr) -> Iterator[ast.expr]:
    """The texts of a message's content: itself, or those of its parts."""
    if isinstance(content, ast.Constant | ast.JoinedStr):
        yield content
    for part in content.elts if isinstance(content, ast.List) else ():
        if isinstance(part, ast.Dict) and "text" in (told := _fields(part)):
            yield told["text"]


def _fields(node: ast.Dict) -> dict[str, ast.expr]:
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _parts(script: Path, text: ast.expr) -> tuple[str, ...]:
    """Texts with the names of fields between them."""
    parts = [""]
    for piece in text.values if isinstance(text, ast.JoinedStr) else [text]:
        if isinstance(piece, ast.Constant) and isinstance(piece.value, str):
            parts[-1] += piece.value
        elif (name := _field(piece)) is not None:
            parts += [name, ""]
        else:
            raise HarmonError(
                f"{script}, line {text.lineno}: `{ast.unparse(piece)[:60]}` stands in the judge's prompt, where only "
                "the record's Prompt and Explanation are known; it is another version."
            )
    return tuple(parts)


def _field(piece: ast.expr) -> str | None:
    """Of `{prompt_data['Prompt']}`: Prompt."""
    if not isinstance(piece, ast.FormattedValue) or piece.format_spec is not None or piece.conversion != -1:
        return None
    inside = piece.value
    if not isinstance(inside, ast.Subscript) or not isinstance(inside.slice, ast.Constant):
        return None
    return inside.slice.value if inside.slice.value in FIELDS else None
