"""`vcompress lint`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from vcompress.bench.engine.settings import Shapes


@dataclass(frozen=True, kw_only=True)
class Command:
    """Find the rules of a target that an ONNX file breaks, before anything is built.

    Verdicts: blocked (will not build), unverified (an error that builds, or something unknown),
    likely (no rule is broken), verified (built here now, with --build).
    """

    model: Annotated[Path, tyro.conf.Positional]
    """Any ONNX file, or a bundle."""
    target: Literal["tensorrt", "tensorrt-rtx", "onnxruntime"] | None = None
    """Runtime that the file will run in. Default: tensorrt; with --build the TensorRT that is
    here."""
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
    shape: tuple[str, ...] = ()
    """Shapes of inputs whose other axes are open, for the build, such as ids=1x128."""

    def run(self) -> None:
        from json import dumps

        from vcompress.bench.bundle import MODEL
        from vcompress.bench.bundle.output import check_outputs, write_text
        from vcompress.bench.engine import Settings
        from vcompress.bench.onnx_file import files_of
        from vcompress.bench.text import shown
        from vcompress.export.lint import lint

        from ._lint import describe

        path = self.model / MODEL if self.model.is_dir() else self.model
        shapes = dict(map(_shape, self.shape))
        settings = (
            Settings(sm=self.sm, batch=self.batch, hw=self.hw, shapes=shapes)
            if self.build
            else None
        )
        target = self.target or (_installed() if self.build else "tensorrt")
        alone = self.json is not None and str(self.json) == "-"
        if not alone:
            check_outputs([self.json], files_of(path))
        report = lint(path, target, build=settings)
        as_json = dumps(report.to_json(), indent=1)
        if self.json is not None and not alone:
            write_text(self.json, as_json + "\n", files_of(path))
        print(as_json if alone else shown(describe(report)))
        if status := int(report.fails(self.fail_on)):
            sys.exit(status)


def _installed() -> str:
    from vcompress.bench.runtimes.tensorrt_library import is_rtx, libraries

    return "tensorrt-rtx" if is_rtx(libraries()[0]) else "tensorrt"


def _shape(text: str) -> tuple[str, Shapes]:
    """`ids=1x128` as the least, the usual and the largest shape."""
    from vcompress.bench.errors import UserError

    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split("x"))
    except ValueError:
        shape = ()
    if not name or not shape:
        raise UserError(f"--shape {text}: expected NAME=1x128.")
    return name, (shape, shape, shape)
