"""`vcompress lint`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Which rules of the target an ONNX file breaks, before anything is built.

    Verdicts: blocked (will not build), unverified (an error that builds, or something unknown),
    likely (nothing stands against it), verified (built here now, with --build).
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Anybody's ONNX file, or a bundle."""
    target: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    """Where it will run."""
    fail_on: Literal["error", "warning", "never"] = "error"
    """What ends with status 1."""
    json: Path | None = None
    """Write all findings here; - is the standard output."""
    build: bool = False
    """Build it with TensorRT as well (TensorRT-RTX builds on a machine with no GPU)."""
    sm: tuple[int, ...] = (89,)
    """Compute capabilities to build for, with TensorRT-RTX."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Least, usual and largest batch of the build, where the file leaves it open."""
    hw: tuple[int, int] | None = None
    """Height and width of the build, where the file leaves them open."""

    def run(self) -> None:
        from ._lint import run_lint

        text, status = run_lint(self)
        print(text)
        if status:
            sys.exit(status)
