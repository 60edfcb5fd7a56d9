"""The finished small run is made once for all tests of this folder."""

from tests.flows.small_run import small_run

__all__ = ["small_run"]
