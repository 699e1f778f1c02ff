"""Which rule of a target an ONNX file breaks, before anything is built."""

from .findings import Finding, Report, Rule, verdict_of
from .lint import TARGETS, lint
from .rules import RULES

__all__ = ["RULES", "TARGETS", "Finding", "Report", "Rule", "lint", "verdict_of"]
