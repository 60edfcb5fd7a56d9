"""What an hour of a node costs: infra/prices.yaml, which a person keeps up to date."""

from collections.abc import Mapping
from pathlib import Path

from flows.cluster.provider import CHECKOUT, NodeType
from pipelines.errors import ConfigurationError
from pipelines.settings import read_yaml

FILE = CHECKOUT / "infra" / "prices.yaml"


def hourly(types: Mapping[str, NodeType], file: Path = FILE) -> dict[str, float]:
    """Dollars an hour of each node type that has a price; a node of this machine costs nothing more. Without the file
    no instance has one.

    Raises:
        ConfigurationError: the file is there and says no price where it should.
    """
    listed = read_yaml(file).get("instances", {}) if file.exists() else {}
    found = {}
    for name, kind in types.items():
        if kind.instance is None:
            found[name] = 0.0
        elif kind.instance in listed:
            try:
                found[name] = float(listed[kind.instance]["usd_per_hour"])
            except (KeyError, TypeError, ValueError):
                raise ConfigurationError(f"{file}: instances.{kind.instance} needs a number usd_per_hour.") from None
    return found
