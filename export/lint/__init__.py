"""Lint: the rules of a target that an ONNX file breaks, found before a build."""

from .findings import Finding, Report, Rule, verdict_of
from .lint import TARGETS, lint
from .rules import RULES

__all__ = ["RULES", "TARGETS", "Finding", "Report", "Rule", "lint", "verdict_of"]
