"""Typed settings from YAML: one way to read them, and one kind of error sentence for whatever is wrong in them."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import ConfigurationError


class Settings(BaseModel):
    """Base of every configuration model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigurationError: the file is absent, is no YAML, or does not hold a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); name an existing YAML file.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} must hold a mapping of keys to values, not {type(data).__name__}.")
    return data


def parse(model: type[S], data: Mapping[str, Any], where: str) -> S:
    """`data` as a `model`.

    Raises:
        ConfigurationError: naming the first wrong key, its place and, for an unknown one, the nearest known name.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # an unknown key explains a required one that is missing, so it is told first
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] != "extra_forbidden":
            raise ConfigurationError(f"{where}: {place or 'the file'}: {first['msg']}.") from None
        known = _known_keys(model, first["loc"][:-1])
        raise ConfigurationError(f"{where}: unknown key '{place}'; {nearest(str(first['loc'][-1]), known)}.") from None


def nearest(name: str, known: list[str]) -> str:
    """The half sentence that tells which known name was probably meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known))}"


def laid_over(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` in their place: mappings are merged key by key, anything else is replaced."""
    merged = dict(values)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def with_override(data: dict[str, Any], setting: str, option: str = "--set") -> None:
    """Apply one `path.to.key=value` to `data` in place; the value is read as YAML; list items are named by number.

    `option` is what the setting was given with, as errors name it.

    Raises:
        ConfigurationError: no `=`, a value that is no YAML, or a path through something that holds no keys.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ConfigurationError(f"{option} {setting}: write it as path.to.key=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigurationError(f"{option} {setting}: '{text}' is not valid YAML.") from None
    *parents, last = path.split(".")
    node: Any = data
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else _item(node, part, f"{option} {setting}")
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list):
        _item(node, last, f"{option} {setting}")
        node[int(last)] = value
    else:
        raise ConfigurationError(f"{option} {setting}: {'.'.join(parents)} holds a value, not keys.")


def _item(node: Any, part: str, said: str) -> Any:
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    raise ConfigurationError(f"{said}: there is nothing named '{part}' on that path.")


def _known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Keys that `model` knows at `path`, following nested models through lists, mappings and unions; a part that
    names the `kind` of a union's member chooses it."""
    models = [model]
    for part in path:
        fields = [one.model_fields[part].annotation for one in models if part in one.model_fields]
        chosen = [one for one in models if part in _kinds(one)]
        models = [inner for field in fields for inner in _inner_models(field)] or chosen or models
    return [name for one in models for name in one.model_fields]


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _inner_models(argument)]
