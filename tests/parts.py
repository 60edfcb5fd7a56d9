"""What a test needs that a machine may lack, and what to do when it is absent.

In CI everything but the shared reference data must be there, so an absent part fails the test; elsewhere the test is
skipped and says why.
"""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def need(present: bool, reason: str) -> None:
    """Go on when `present`; otherwise fail in CI and skip elsewhere, with `reason`."""
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have every part: {reason}")
    pytest.skip(reason)


def need_shared(relative: str) -> Path:
    """Path of reference data below ../shared; skips where it is absent, in CI too."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference data {path} is absent")
    return path
