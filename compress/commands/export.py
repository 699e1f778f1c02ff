"""`vcompress export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Export a bundle's network again, check it against torch and measure it."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """The bundle; its model.onnx and metrics are replaced."""
    to: Literal["onnx"] = "onnx"
    """Format."""
    opset: int | None = None
    """ONNX operator set; default: the exporter's."""
    out: Path | None = None
    """Write the file here instead and leave the bundle as it is."""
    trust: str | None = None
    """Your own module:factory that the bundle may run."""

    def run(self) -> None:
        from ..reexport import export_bundle, export_file

        if self.out is not None:
            print(export_file(self.run_dir, self.out, self.opset, self.trust))
        else:
            show(export_bundle(self.run_dir, self.opset, self.trust))
