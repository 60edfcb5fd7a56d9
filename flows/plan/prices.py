"""Published prices, from one file that a person edits: infra/prices.yaml, or the file of --prices."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from flows.recipe import CHECKOUT
from harmon.training.device import Gpu
from pipelines.errors import ConfigurationError
from pipelines.settings import Settings, nearest, parse, read_yaml

SHIPPED = CHECKOUT / "infra" / "prices.yaml"


class InstancePrice(Settings):
    """A kind of machine to rent."""

    usd_per_hour: float = Field(ge=0)
    gpus: int = Field(ge=0)
    gpu: Gpu | None
    """What its GPUs are; null: it has none."""
    vcpus: int = Field(gt=0)
    source: str
    date: datetime.date

    @model_validator(mode="after")
    def _gpus_have_a_kind(self) -> Self:
        if (self.gpus > 0) != (self.gpu is not None):
            raise ValueError("gpus and gpu: name both, or 0 and null")
        return self

    @property
    def usd_per_gpu_hour(self) -> float:
        """Of one GPU with its share of the machine."""
        return self.usd_per_hour / self.gpus


class StoragePrice(Settings):
    """A place to keep bytes."""

    usd_per_gb_month: float = Field(ge=0)
    source: str
    date: datetime.date


class Defaults(Settings):
    """What is rented where nothing else is asked for."""

    gpu_instance: str
    cpu_instance: str
    storage: str


class Prices(Settings):
    """The file."""

    currency: Literal["USD"]
    instances: Mapping[str, InstancePrice]
    storage: Mapping[str, StoragePrice]
    defaults: Defaults

    def instance(self, name: str, gpus: bool) -> InstancePrice:
        """A machine by name. Raises ConfigurationError: there is none, or it is not of the kind with `gpus`."""
        if name not in self.instances:
            raise ConfigurationError(f"The prices have no instance '{name}'; {nearest(name, list(self.instances))}.")
        if gpus and not self.instances[name].gpus:
            raise ConfigurationError(f"{name} has no GPU; name an instance with GPUs, or add one to the prices.")
        return self.instances[name]


def read_prices(path: Path | None = None) -> Prices:
    """The prices in a file, or those that the project ships. Raises ConfigurationError where it is wrong."""
    path = path or SHIPPED
    prices = parse(Prices, read_yaml(path), str(path))
    for name, known in (
        (prices.defaults.gpu_instance, prices.instances),
        (prices.defaults.cpu_instance, prices.instances),
        (prices.defaults.storage, prices.storage),
    ):
        if name not in known:
            raise ConfigurationError(f"{path}: defaults: there is no '{name}'; {nearest(name, list(known))}.")
    prices.instance(prices.defaults.gpu_instance, gpus=True)
    return prices
