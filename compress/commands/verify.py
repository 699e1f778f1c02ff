"""`vcompress verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Verify that a bundle is unchanged, and computes here what it computed where it was made."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a bundle, or an archive of vcompress pack."""
    key: Path | None = None
    """File of the public key that the signature must belong to."""
    expect: str | None = None
    """Name of the network that the bundle must hold, or the SHA-256 of its manifest (12 digits or
    more)."""
    not_before: str | None = None
    """Earliest start of the last stage, such as 2026-11-01; UTC where no zone is said."""
    no_golden: bool = False
    """Check the files alone, without running the golden inputs."""
    runtime: tuple[str, ...] = ()
    """Runtimes that must be present and agree. Default: the one that the network was quantised
    for, else onnxruntime."""
    timeout_s: float = 300.0
    """Time limit of each runtime, seconds, above 0."""

    def run(self) -> None:
        from vcompress.bench.bundle.identity import Expected
        from vcompress.bench.verify.check import show

        show(
            self.bundle, key=self.key, golden=not self.no_golden, runtimes=self.runtime,
            timeout_s=self.timeout_s, expected=Expected(self.expect, self.not_before),
        )  # fmt: skip
