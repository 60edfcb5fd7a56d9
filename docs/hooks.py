"""What MkDocs makes of the code: the pages of commands and of recipes. `make docs` runs it; mkdocs.yml names it."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

PAGE = re.compile(r"(?<![\w/`\[(])docs/([\w/-]+\.md)(?![`\])])")  # a page that a sentence names
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)[^)]*\)")  # a link out of docs/, to a file of the checkout


def on_config(config: Any) -> Any:
    """A page that the menu of mkdocs.yml does not name stands at its end, so that none is lost."""
    folder = Path(config.docs_dir)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.md"))
    left = [page for page in written if page not in set(_pages(config.nav))]
    config.nav += [{"More": left}] if left else []
    return config


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for one in nav.values() if isinstance(nav, dict) else nav:
        yield from _pages(one)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for path, content in (("reference/cli.md", cli_page()), ("reference/recipe.md", recipe_page())):
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Pages that a sentence names are linked; links out of docs/ name the file instead: on the site there is none."""
    known = {file.src_uri for file in files}
    up = "../" * page.file.src_uri.count("/")

    def linked(name: re.Match[str]) -> str:
        return f"[{name[0]}]({up}{name[1]})" if name[1] in known else name[0]

    def named(link: re.Match[str]) -> str:
        return link[0] if link[2] in known else f"{link[1]} (`{link[2]}`)"

    lines = [line if line.startswith("    ") else PAGE.sub(linked, line) for line in markdown.splitlines()]
    return OUTSIDE.sub(named, "\n".join(lines))


def cli_page() -> str:
    """Every command of `harmon`, from what click knows of it."""
    from flows.cli import main

    parts = [
        "# Commands",
        "Made from the commands themselves. Exit codes everywhere: 0 done or yes, 1 the answer is no, 2 bad usage or "
        "configuration, 3 it could not be done.",
    ]
    for path, command in commands(main, "harmon"):
        parts += [f"## {path}", *_command(path, command)]
    return "\n\n".join(parts) + "\n"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Each command below a group, with the words that call it."""
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def _command(path: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    yield f"    {' '.join([path, *command.collect_usage_pieces(context)])}"
    if command.help:
        yield _plain(inspect.cleandoc(command.help))
    rows = []
    for option in command.params:
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record:
            rows.append(f"| `{record[0].replace('|', chr(92) + '|')}` | {_cell(record[1])} |")
    if rows:
        yield "\n".join(["| option | |", "|---|---|", *rows])
    if command.epilog:
        yield _plain(command.epilog)


def recipe_page() -> str:
    """Every key that a recipe may have, from the models that read it."""
    from flows.recipe import Recipe
    from harmon.training.stage import StageConfig

    parts = [
        "# Recipes",
        "Every key of a recipe, made from the models that read it; an unknown key is an error that names the nearest "
        "known one. Keys with a default may be left out. `extends: FILE` lays a recipe over another beside it, and "
        "`--set path.to.key=value` lays a value over either. A stage's `departures` take the keys of StageConfig.",
    ]
    for name, model in (models(Recipe) | models(StageConfig)).items():
        doc = (model.__doc__ or "").strip() if model.__doc__ is not BaseModel.__doc__ else ""
        parts += [f"## {name}", _plain(inspect.cleandoc(doc)), _fields(model)]
    return "\n\n".join(part for part in parts if part) + "\n"


def models(root: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """`root` and every model below it, by name, in the order in which they are met."""
    found = {root.__name__: root}
    for field in root.model_fields.values():
        for inner in _models_in(field.annotation):
            if inner.__name__ not in found:
                found |= {name: one for name, one in models(inner).items() if name not in found}
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _fields(model: type[BaseModel]) -> str:
    said = told(model)
    rows = []
    for name, field in model.model_fields.items():
        default = (
            "" if field.is_required() else _default(field.get_default(call_default_factory=True, validated_data={}))
        )
        rows.append(f"| `{name}` | {_type(field.annotation)} | {default} | {_cell(said.get(name, ''))} |")
    return "\n".join(["| key | is | if left out | |", "|---|---|---|---|", *rows])


def told(model: type[BaseModel]) -> Mapping[str, str]:
    """The text below each field in the model's source, and in those of the models that it builds on."""
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not (issubclass(one, BaseModel) and one is not BaseModel and one.model_fields):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found[name] = inspect.cleandoc(said)
    return found


def _type(annotation: Any) -> str:
    """A type as a person writes its values: text, number, list of text, one of a, b."""
    origin, inner = get_origin(annotation), get_args(annotation)
    plain = {str: "text", int: "whole number", float: "number", bool: "yes or no", type(None): "null", Any: "anything"}
    if annotation in plain:
        return plain[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if is_dataclass(annotation):
        return f"keys {', '.join(f'`{one.name}`' for one in fields(annotation))}"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_type(one) for one in inner))
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}" if Ellipsis in inner else f"[{', '.join(_type(one) for one in inner)}]"
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"keys with {_type(inner[1])} each"
    if origin is not None and inner:  # Annotated
        return _type(inner[0])
    return getattr(annotation, "__name__", str(annotation)).lower().removeprefix("ipvany")  # IPvAnyNetwork


def _default(value: Any) -> str:
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "null"
    if value in ((), [], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"`{', '.join(str(one) for one in value)}`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Help texts are no Markdown: what looks like a tag or a mark is kept as it is."""
    kept = re.sub(r"[ \t]*\b\n", "\n", text.replace("\b", ""))
    return re.sub(r"([<*_\[\]])", r"\\\1", kept) if "`" not in kept else re.sub(r"<", r"&lt;", kept)
