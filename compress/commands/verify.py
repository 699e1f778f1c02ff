"""`vcompress verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Whether a bundle is as it was written, and computes here what it computed there."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder, or archive of vcompress pack."""
    key: Path | None = None
    """Public key that it must be signed with."""
    no_golden: bool = False
    """Check files only; do not run the golden inputs."""
    runtime: tuple[str, ...] = ()
    """Runtimes that must be present and agree; by default onnxruntime decides."""
    timeout_s: float = 300.0
    """For each runtime, seconds."""

    def run(self) -> None:
        from vcompress.bench.verify.check import show

        show(
            self.bundle, key=self.key, golden=not self.no_golden, runtimes=self.runtime,
            timeout_s=self.timeout_s,
        )  # fmt: skip
