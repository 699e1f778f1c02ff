"""From an ONNX file to an engine, in a process of its own.

A malformed graph can crash the builder, and a large one can take all memory. Either becomes one
message here, and never half a file.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import onnx_file
from ..apart import Reply, ask
from ..bundle import sha256
from ..errors import UserError
from ..runtimes.cuda import has_driver
from .layers import LayerReport
from .settings import Settings


@dataclass(frozen=True)
class BuildReport:
    """An engine that was built, and from what."""

    path: Path
    size_bytes: int
    seconds: float
    onnx_sha256: str
    library: str
    """tensorrt or tensorrt_rtx."""
    version: str
    gpu: str
    """The GPU that it was built on; empty where there was none."""
    settings: Settings
    layers: LayerReport | None
    """What each node became, where the builder tells."""
    layers_missing: str
    """Why there is no layer report; empty where there is one."""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON's own types, without the layers: they make a file of their own."""
        found = asdict(self)
        found |= {"path": self.path.name, "settings": self.settings.to_json()}
        found["warnings"] = list(self.warnings)
        del found["layers"]
        return found


def build_engine(
    onnx_path: Path | str,
    out: Path | str,
    settings: Settings | None = None,
    *,
    timing_cache: Path | str | None = None,
) -> BuildReport:
    """Build `out` from `onnx_path`; `timing_cache` is read where it is there, and written.

    Raises:
        EnvironmentLacks: no TensorRT, or none that can build what was asked on this machine.
        UserError: the file is no ONNX model or names files elsewhere; the builder refused, crashed,
            ran out of memory or time. Nothing is left behind.
    """
    onnx_path, out = Path(onnx_path), Path(out)
    settings = settings or Settings()
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path}: no such file. Expected an ONNX model.")
    # TensorRT's parser follows a link beside the model to any file of ours.
    onnx_file.check_external(onnx_path, onnx_file.read(onnx_path))
    digest = sha256(onnx_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        staging = Path(folder) / out.name
        request = {
            "path": str(onnx_path),
            "device": "cuda" if has_driver() else "cpu",  # with a GPU memory is not limited
            "out": str(staging),
            "timing_cache": None if timing_cache is None else str(timing_cache),
            "settings": settings.to_json(),
        }
        start = time.perf_counter()
        found = _ask(request, onnx_path, settings.timeout_s)
        seconds = time.perf_counter() - start
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(out)
    return BuildReport(
        path=out,
        size_bytes=out.stat().st_size,
        seconds=seconds,
        onnx_sha256=digest,
        library=found["library"],
        version=found["version"],
        gpu=found["gpu"],
        settings=settings,
        layers=None if found["layers"] is None else LayerReport.from_json(found["layers"]),
        layers_missing=found["layers_missing"],
        warnings=tuple(found["warnings"]),
    )


def _ask(request: dict[str, Any], onnx_path: Path, timeout_s: float) -> dict[str, Any]:
    reply = ask("vcompress.bench.engine.worker", request, timeout_s)
    if reply.status is None:
        raise UserError(
            f"{onnx_path}: TensorRT did not finish within {timeout_s:g} s. Give more time "
            "(--build-timeout), or a lower optimisation level."
        )
    reply.raise_error()
    if reply.status != 0 or "library" not in reply.answer:
        raise UserError(f"{onnx_path}: {_death(reply)}{reply.last_words}")
    return reply.answer


def _death(reply: Reply) -> str:
    """What to tell of a builder's process that ended without an answer."""
    if reply.status == -signal.SIGKILL:
        return (
            "the builder was killed; the memory of this machine is too small for it. Build on a "
            "larger machine, or lower the largest batch and --workspace-mib."
        )
    return (
        f"TensorRT's builder {reply.end} on this graph. It is malformed or meets a bug of "
        "TensorRT; `vcompress lint` says which nodes break a rule."
    )
