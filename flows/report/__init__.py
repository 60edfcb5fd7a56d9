"""The report of a run: one HTML page that says what was done, what came out, and what it is worth."""

from flows.report.build import build_report
from flows.report.inputs import Goals, ReportInput, StandIn

__all__ = ["Goals", "ReportInput", "StandIn", "build_report"]
