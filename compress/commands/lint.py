"""`vcompress lint`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Find the rules of a target that an ONNX file breaks, before anything is built.

    Verdicts: blocked (will not build), unverified (an error that builds, or something unknown),
    likely (no rule is broken), verified (built here now, with --build).
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Any ONNX file, or a bundle."""
    target: Literal["tensorrt", "onnxruntime"] = "tensorrt"
    """Runtime that the file will run in."""
    fail_on: Literal["error", "warning", "never"] = "error"
    """Least severity that gives the exit status 1."""
    json: Path | None = None
    """File for all findings as JSON; - is the standard output."""
    build: bool = False
    """Build the file with TensorRT as well; TensorRT-RTX needs no GPU for that."""
    sm: tuple[int, ...] = (89,)
    """Compute capabilities that TensorRT-RTX builds for, such as 86 89."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Least, usual and largest batch of the build, images, where the file leaves it open."""
    hw: tuple[int, int] | None = None
    """Height and width of the build, pixels, where the file leaves them open."""

    def run(self) -> None:
        from ._lint import run_lint

        text, status = run_lint(self)
        print(text)
        if status:
            sys.exit(status)
