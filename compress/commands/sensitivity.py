"""`vcompress sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """What quantising each layer alone costs, the most sensitive first."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """A float bundle with data."""
    target: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    """Where the network will run."""
    trust: str | None = None
    """Your own module:factory that the bundle may run."""

    def run(self) -> None:
        from ..rank import rank_layers
        from ..table import print_ranking

        print_ranking(rank_layers(self.bundle, self.target, self.trust))
