"""The labelled graphs of `vcompress lint`."""

from . import broken, good, operators
from .net import CASES, Case

__all__ = ["CASES", "Case", "broken", "good", "operators"]
