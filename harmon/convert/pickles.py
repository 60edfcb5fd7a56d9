"""Torch's pickles (.pth, .ckpt) as mappings of tensors; nothing in them is ever run."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import ConfigurationError, HarmonError


def read_pickle(path: Path) -> Mapping[str, Any]:
    """The mapping in a file that torch.save wrote; tensors are memory-mapped where the format allows it.

    Only tensors and plain values are rebuilt, and argparse.Namespace, which MAR's checkpoints hold beside
    them and which is a bag of values.

    Raises:
        ConfigurationError: no such file.
        HarmonError: the file is damaged, holds no mapping, or asks for code to be run.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}; name one that torch.save wrote.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise HarmonError(
                f"{path} was refused: loading it would run code (it asks for {wanted[1]}), and weights need none; "
                "get the file from its publisher again, or one in safetensors."
            ) from None
        raise HarmonError(f"{path} is damaged or no torch file; fetch it again.") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise HarmonError(f"{path} is damaged or no torch file ({first}); fetch it again.") from None
    if not isinstance(loaded, Mapping):
        raise HarmonError(f"{path} holds a {type(loaded).__name__}, not named tensors; name a file of weights.")
    return loaded


def tensors_of(values: object, where: object) -> dict[str, Tensor]:
    """`values` as named tensors. Raises HarmonError naming the first entry that is none."""
    if not isinstance(values, Mapping):
        raise HarmonError(f"{where} holds a {type(values).__name__}, not named tensors; name a file of weights.")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise HarmonError(f"{where}: {name!r} is no tensor; name a flat file of weights.")
    return dict(values)
