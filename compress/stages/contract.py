"""The contract of a stage, free of heavy imports so that the command line starts at once.

A stage is one file in `compress/stages/` with a frozen dataclass `Config` and
`apply(model, config, context) -> Outcome`. The same `Config` is the Python API, the command's
flags and a table of the recipe file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Outcome:
    """What a stage hands on."""

    model: nn.Module
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for the bundle's history: what was reached against what was asked."""
    section: str = ""
    """HTML for this stage's report alone."""
