"""The mathematics of FID: the Frechet distance between two sets of features, each taken for a normal distribution.

    d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

The features decide what the number means: extractor, resizing and reference set stand beside any FID.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harmon.evaluation.scorers.counts import FID_IMAGES, require
from pipelines.errors import HarmonError

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean [D] and covariance [D, D] (unbiased, ddof 1) of the features of `n` pictures; `n` is None where published
    statistics do not say it."""

    mean: Float
    covariance: Float
    n: int | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean), len(self.mean)):
            raise HarmonError(
                f"FID statistics have a mean of shape {self.mean.shape} and a covariance of shape "
                f"{self.covariance.shape}; they must be [D] and [D, D]."
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise HarmonError("FID statistics hold a number that is not finite; compute the features in 32 bits.")


@dataclass(frozen=True)
class FidScore:
    """FID of `n` pictures against a reference of `reference_n`, None where that is not known."""

    fid: float
    n: int
    reference_n: int | None

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {"fid": self.fid, "n": self.n, "reference_n": self.reference_n}


def moments(features: ArrayLike) -> Moments:
    """Mean and covariance of `features` [N, D], in 64 bits.

    Raises:
        HarmonError: fewer than two pictures, or another shape.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise HarmonError(f"FID needs features of two pictures or more, as [N, D]; these have shape {values.shape}.")
    covariance = np.atleast_2d(np.cov(values, rowvar=False))
    return Moments(values.mean(axis=0), covariance, len(values))


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared distance of the formula above.

    The trace of the root is the sum of singular values of R1' R2, where C = R R': no general matrix root is needed,
    whose option `disp` SciPy 1.18 removes, and singular covariances (fewer pictures than features) lose no digits.

    clean-fid `cleanfid/fid.py::frechet_distance`, pytorch-fid `calculate_frechet_distance`, torch-fidelity
    `fid_statistics_to_metric`.

    Raises:
        HarmonError: the two have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise HarmonError(
            f"FID of {len(first.mean)} features against {len(second.mean)}; use the same extractor for both."
        )
    offset = first.mean - second.mean
    root = np.linalg.svd(_root(first.covariance).T @ _root(second.covariance), compute_uv=False).sum()
    return float(offset @ offset + np.trace(first.covariance) + np.trace(second.covariance) - 2 * root)


def score(generated: ArrayLike, reference: Moments, wanted: int = FID_IMAGES, *, partial: bool = False) -> FidScore:
    """FID of features [N, D] of generated pictures against `reference`; FID of fewer pictures is biased upwards.

    Raises:
        HarmonError: not `wanted` pictures, and `partial` does not say so.
    """
    ours = moments(generated)
    assert ours.n is not None
    require("FID, generated pictures", ours.n, wanted, partial)
    return FidScore(frechet_distance(ours, reference), ours.n, reference.n)


def _root(covariance: Float) -> Float:
    """R [D, D] with R R' = `covariance`; eigenvalues below 0 are rounding and taken for 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)), dtype=np.float64)
