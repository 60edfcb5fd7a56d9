"""Kinds of GPU: their memory and peak rate, by NVIDIA's data sheets."""

from dataclasses import dataclass
from typing import Literal, get_args

GIB = float(2**30)
Gpu = Literal["A100-40G", "A100-80G", "H100-80G", "H200-141G"]


@dataclass(frozen=True)
class Device:
    """A kind of GPU."""

    name: str
    memory: float
    """Bytes that the driver leaves."""
    flops: float
    """Peak bfloat16 rate, without sparsity."""


A100 = Device("A100-80G", 79.2 * GIB, 312e12)
DEVICES: dict[Gpu, Device] = {
    "A100-40G": Device("A100-40G", 39.4 * GIB, 312e12),
    "A100-80G": A100,
    "H100-80G": Device("H100-80G", 79.2 * GIB, 989e12),
    "H200-141G": Device("H200-141G", 139.8 * GIB, 989e12),
}
assert set(DEVICES) == set(get_args(Gpu))

# by what a CUDA device calls itself; the first that fits: cards for PCIe are slower than their namesakes
_RATES = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak_of(device_name: str) -> float | None:
    """Peak bfloat16 rate of one CUDA device of this name, None where it is not known."""
    return next((rate for part, rate in _RATES.items() if part in device_name), None)
